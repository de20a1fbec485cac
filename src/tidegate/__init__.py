"""tidegate: image generation and a language model on one consumer GPU.

Owns the version. `core` decides, `wire` carries, `runtime` acts, `workers` hold the engines in processes of
their own, `cli` speaks to people. Imports go one way: core ← wire ← runtime ← cli, and core ← wire ← workers.
"""

from __future__ import annotations

# tests/test_tidy.py holds it equal to pyproject.toml; reading the metadata here would be work at import.
__version__ = "0.1.0"
