"""The front: one process that owns the conversations of all language models, and never touches a card.

    __main__     the process: the runtime's words, and links to the GPU children
    desk         requests taken in, served, dropped; what the children say, said on
    intake       from an ask to a request that a child can begin
    request      one request: its prompt, what was generated, the last saved state
    speech       from tokens to text: characters, stop texts, the parser of the answer
    models       the models that asks may name
    vocabulary   a model without weights: tokens, pieces, grammars
    memories     states of idle conversations, in RAM and on disk, bounded
    dialogue, templates, tools, schemas, thoughts    the prompt side, pure

A GPU child may vanish at any time; what it takes to go on elsewhere is here. A token that went out of here is
never taken back. The children are `tidegate.workers.llm`.
"""

from __future__ import annotations
