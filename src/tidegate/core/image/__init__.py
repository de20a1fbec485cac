"""Image jobs: their lifecycle (`job`), the recovery ladder (`ladder`) and how failures are classified."""

from __future__ import annotations
