"""The GPU child of one language model: weights, context, batching loop and samplers.

    __main__  the process: two conversations, listened to between two steps of the computation
    engine    one model's life: levels, streams, what is handed over
    loop      what is computed, turn after turn
    calls     which rows are computed together
    weights, context   what llama.cpp holds on the card, made and given back
    slots, streams     places in the context, and who is being served in them
    sampling  chains of samplers, rebuilt from the history
    states    saved sequences in memory files
    keeper    notes that go with states, and whether a state is believed
    vision    pictures as tokens
    vectors   texts as vectors
    outbox    what is told to the front, in few frames

It may be killed at any time: the front has the history and the last snapshot of everything. Conversations,
templates and text are the front's (`tidegate.workers.front`).
"""

from __future__ import annotations
