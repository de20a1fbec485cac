"""JSON schemas as grammars, by the engine's own converter.

Owns the call. Which schemas a client may send, and what is made of the text, is not its business.
"""

from __future__ import annotations

import ctypes
from functools import cache

from tidegate_engines.llama.libraries import bindings, library_folder


def json_schema_to_gbnf(schema: str) -> str:
    """The grammar (GBNF, root `root`) of a JSON schema's text. Raises ValueError in the engine's words."""
    answer = ctypes.c_char_p()
    refused = _converter().llamaext_schema_to_grammar(schema.encode(), ctypes.byref(answer))
    text = (answer.value or b"").decode("utf-8", "replace")
    if refused:
        raise ValueError(text)
    return text


@cache
def _converter() -> ctypes.CDLL:
    bindings()
    loaded = ctypes.CDLL(str(library_folder() / "libllamaschema.so"))
    loaded.llamaext_schema_to_grammar.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
    loaded.llamaext_schema_to_grammar.restype = ctypes.c_int32
    return loaded
