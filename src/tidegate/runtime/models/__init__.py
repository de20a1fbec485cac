"""Model files: reading their headers defensively, telling what they are, and which belong together.

Reading goes `opening` → `safetensors_header` | `gguf_header` → `model_file`; meaning is told by `identity`
and `signatures`; folders and names are the `shelf`; `soundness` and `assembly` make one image model out of
files; `fingerprint` names a file's content. Nothing here loads weights, and no engine is imported.
"""

from __future__ import annotations
