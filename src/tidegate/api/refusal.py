"""A refusal: what every dialect says in its own envelope.

Owns the data only. Faults become refusals in `refusals`; envelopes are `native.envelope`, `openai.envelope`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`retry_after_ms` is 0 when coming back does not help; `param` names the field, where there is one."""

    status: int
    code: str
    message: str
    remedy: str = ""
    retry_after_ms: int = 0
    param: str = ""

    @property
    def retry_after_s(self) -> int:
        """Whole seconds for the Retry-After header, rounded up."""
        return -(-self.retry_after_ms // 1_000)
