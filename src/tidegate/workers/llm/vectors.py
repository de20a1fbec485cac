"""Vectors: a text as one vector, for asks for embeddings.

Owns computing it piece by piece, between the turns of others. A model that pools makes the vector of a whole
text itself, and needs it in one batch; for others it is the mean over all tokens. Its length is one.
"""

from __future__ import annotations

import math

import numpy as np

from tidegate.wire.messages import FaultKind
from tidegate.workers.llm.context import Context, Row
from tidegate.workers.llm.streams import Text
from tidegate.workers.llm.weights import EngineRefused


def computed(context: Context, sequence: int, text: Text) -> bytes | None:
    """Compute the next piece; the vector as float32 when it was the last. Raises `EngineRefused`."""
    most = context.batch_max if context.pools else context.outputs_max
    if context.pools and len(text.tokens) > most:
        told = f"the text has {len(text.tokens)} tokens, this model takes {most} in one batch"
        raise EngineRefused(FaultKind.INVALID_REQUEST, told)
    start = text.done_count
    piece = text.tokens[start : start + most]
    found = context.embed([Row(token, start + n, sequence, True) for n, token in enumerate(piece)])
    total = found.sum(axis=0, dtype=np.float64)
    text.total = (total + np.asarray(text.total)).tolist() if text.total else total.tolist()
    text.done_count += len(piece)
    if text.done_count < len(text.tokens):
        return None
    vector = np.asarray(text.total)
    norm = float(np.linalg.norm(vector))
    if not math.isfinite(norm):
        raise EngineRefused(FaultKind.NOT_FINITE, "the model computed NaN or infinity")
    vector /= norm or 1.0
    return vector.astype("<f4").tobytes()
