"""The dialect of OpenAI's API, as far as images and models go: `/v1`.

Owns its routes, its schemas and its envelope. Everything that this dialect cannot say is in `native`.
"""

from __future__ import annotations
