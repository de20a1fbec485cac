"""The language engine: llama.cpp's libraries, their bindings, the virtual card for them, and prediction.

Owns the doors; what is behind them is in `libraries` (where things are and how they are loaded), `prediction`
(bytes before anything is allocated), `schemas` and `messages` (what the engine says while it works).
Importing this package loads no library and touches no device. Never use it in a process that also uses
`sdstage`: each engine brings a ggml of its own version.
"""

from __future__ import annotations

from tidegate_engines.llama.libraries import (
    Device,
    UnusableLedger,
    WrongProcess,
    attach_hollow_card,
    attach_virtual_card,
    bindings,
    build_id,
    card_plugin,
    device_list,
    devices,
    free_bytes_of,
    library_folder,
    program,
    vision_bindings,
)
from tidegate_engines.llama.messages import Log, log
from tidegate_engines.llama.prediction import (
    KV_TYPES,
    Allocation,
    Header,
    Holding,
    Shape,
    UnusableModel,
    allocations,
    header,
    holdings,
    predict,
)
from tidegate_engines.llama.projection import Projection, predict_projector, projector_parameters
from tidegate_engines.llama.schemas import json_schema_to_gbnf

__all__ = [
    "KV_TYPES",
    "Allocation",
    "Device",
    "Header",
    "Holding",
    "Log",
    "Projection",
    "Shape",
    "UnusableLedger",
    "UnusableModel",
    "WrongProcess",
    "allocations",
    "attach_hollow_card",
    "attach_virtual_card",
    "bindings",
    "build_id",
    "card_plugin",
    "device_list",
    "devices",
    "free_bytes_of",
    "header",
    "holdings",
    "json_schema_to_gbnf",
    "library_folder",
    "log",
    "predict",
    "predict_projector",
    "program",
    "projector_parameters",
    "vision_bindings",
]
