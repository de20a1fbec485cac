"""Language models: their levels (`level`), how a level is changed (`tide`) and their requests (`request`)."""

from __future__ import annotations
