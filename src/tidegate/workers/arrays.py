"""Arrays: embeddings, latents and pixels on their way into and out of files.

Owns the translation between NumPy arrays and artifacts. How a file is written atomically is
`tidegate.wire.artifacts`; which files there are is decided by the parent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from tidegate.wire import artifacts

# Embeddings hold integers too: the token numbers that some text encoders pass on.
Array = npt.NDArray[np.float32] | npt.NDArray[np.int32]
Arrays = dict[str, Array]
Pixels = npt.NDArray[np.uint8]


def save(path: Path, arrays: Mapping[str, Array], *, fingerprint: dict[str, str]) -> str:
    """Write arrays with their fingerprint and return the file's SHA-256. Raises OSError.

    Equal arrays and fingerprints give equal bytes, so that hashes can be compared between runs.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return artifacts.write_atomically(
        path, safetensors.numpy.save(whole, metadata=artifacts.metadata_of(fingerprint))
    )


def load(path: Path) -> Arrays:
    """Read every array of a file. Raises `UnreadableArtifact`."""
    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise artifacts.UnreadableArtifact(f"{path.name}: {error}") from error


def read_pixels(exchange: int, *, width: int, height: int) -> Pixels:
    """Take an image of `height` rows of `width` RGB pixels out of the exchange."""
    wanted = width * height * 3
    data = os.pread(exchange, wanted, 0)
    if len(data) != wanted:
        raise artifacts.UnreadableArtifact(f"the exchange holds {len(data)} bytes of pixels, not {wanted}")
    return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)


def write_pixels(exchange: int, pixels: Pixels) -> str:
    """Put an image into the exchange and return the SHA-256 of its bytes. Raises OSError."""
    data = np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()
    os.ftruncate(exchange, len(data))
    view, offset = memoryview(data), 0
    while offset < len(data):
        offset += os.pwrite(exchange, view[offset:], offset)
    return hashlib.sha256(data).hexdigest()
