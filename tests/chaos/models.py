"""The models of storms and soaks, where none are named.

Owns only the way to them; they are made by scripts/demo_models.py and kept in the cache folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent


def tiny_model() -> Path:
    """A checkpoint of 1 GB whose images of 64 pixels take a second."""
    return _folder("sd1-tiny") / "sd1-tiny.safetensors"


def tiny_talker() -> Path:
    """A language model of 6 MB, hundreds of tokens in a second."""
    return _folder("llama-tiny") / "llama-tiny.gguf"


def _folder(kind: str) -> Path:
    command = [sys.executable, str(TREE / "scripts" / "demo_models.py"), kind]
    ended = subprocess.run(command, cwd=TREE, stdout=subprocess.PIPE, text=True, check=True)
    return Path(ended.stdout.strip())
