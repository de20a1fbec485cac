"""Snapshots: the state, and single events, as plain data (dicts, lists, strings, numbers) and back, for the
journal.

Owns the packing of dataclasses, enums, tuples and dicts. Classes are named, so a snapshot can be read by
people; unpacking knows exactly the classes that a state can hold and nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any  # Packed data is of any shape by nature.

from tidegate.core import (
    catalog,
    events,
    guest,
    house,
    lease,
    ledger,
    policy,
    pool,
    stage,
    state,
    story,
    worker,
)
from tidegate.core.image import failure, job
from tidegate.core.llm import level, model, request, rhythm
from tidegate.core.planner import filters, option, plan, prices, question, scores

CLASS, ENUM, PAIRS, TUPLE = "class", "enum", "pairs", "tuple"
_MODULES = (
    catalog, events, failure, filters, guest, house, job, lease, ledger, level, model, option, plan, policy,
    pool, prices, question, request, rhythm, scores, stage, state, story, worker,
)  # fmt: skip


def _classes() -> dict[str, type]:
    """Every dataclass and enum that is defined in the modules of the state."""
    found: dict[str, type] = {}
    for module in _MODULES:
        for name, known in vars(module).items():
            if isinstance(known, type) and known.__module__.startswith("tidegate.core"):
                found[name] = known
    return found


def packed(value: object) -> Any:  # Any: see the import.
    """Turn a value of the state into plain data."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return {ENUM: type(value).__name__, "value": value.value}
    if isinstance(value, int | str):
        return value
    if isinstance(value, tuple):
        return {TUPLE: [packed(item) for item in value]}
    if isinstance(value, list):
        return [packed(item) for item in value]
    if isinstance(value, Mapping):
        return {PAIRS: [[packed(key), packed(item)] for key, item in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        kept = {field.name: packed(getattr(value, field.name)) for field in fields(value)}
        return {CLASS: type(value).__name__, **kept}
    raise TypeError(f"{type(value).__name__} has no place in a state")


def unpacked(data: Any) -> Any:  # Any: see the import.
    """Turn plain data back into what it was packed from."""
    return _unpacked(data, _classes())


def _unpacked(data: Any, classes: dict[str, type]) -> Any:  # Any: see the import.
    if isinstance(data, list):
        return [_unpacked(item, classes) for item in data]
    if not isinstance(data, dict):
        return data
    if ENUM in data:
        return classes[data[ENUM]](data["value"])
    if TUPLE in data:
        return tuple(_unpacked(item, classes) for item in data[TUPLE])
    if PAIRS in data:
        return dict(_pairs(data[PAIRS], classes))
    made = classes[data[CLASS]]
    return made(**{name: _unpacked(item, classes) for name, item in data.items() if name != CLASS})


def _pairs(pairs: Iterable[Any], classes: dict[str, type]) -> Iterable[tuple[Any, Any]]:
    # Any: see the import.
    for key, item in pairs:
        yield _unpacked(key, classes), _unpacked(item, classes)
