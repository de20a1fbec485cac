"""The API: how the server is reached over HTTP.

Owns dialects, schemas, safety at the door and the wording of refusals for programs. All work is done behind
`tidegate.runtime.gate`; what people type is `tidegate.cli`'s.
"""

from __future__ import annotations
