"""The native dialect: `/api`, `/internal`, `/metrics` and `/docs`.

Owns its routes, schemas and its envelope. Programs that speak OpenAI's dialect are served by the neighbour
`openai`.
"""

from __future__ import annotations
