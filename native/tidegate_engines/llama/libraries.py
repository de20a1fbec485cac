"""Where the language engine's libraries lie, and how a process gets hold of them.

Owns finding and loading: the bindings (always those of the libraries' own release, because struct layouts
shift silently between releases), the virtual card's plugin, the engine's programs, the list of devices.
Does not own what is done with a model; that is the bindings' and `prediction`'s.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any  # a ctypes function pointer has no type of its own

HOME = Path(__file__).parent
# The libraries keep pointers to these.
_hearers: list[Any] = []
KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator", 4: "meta"}


class WrongProcess(RuntimeError):
    """This process already holds something that does not go together with this engine."""


class UnusableLedger(RuntimeError):
    """The virtual card's ledger cannot be used; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Device:
    """One of ggml's devices: `kind` is gpu, igpu, cpu or accelerator; bytes as the device tells them now."""

    name: str
    description: str
    kind: str
    total_bytes: int
    free_bytes: int


def library_folder() -> Path:
    """The folder of libllama, libggml, libmtmd, llamaext and the virtual card's plugin."""
    return HOME / "lib"


def card_plugin() -> Path:
    """The virtual card for this engine, which `ggml_backend_load` takes (and `GGML_BACKEND_PATH` of a
    program).
    """
    return library_folder() / "libtidegate-vcard.so"


def program(name: str) -> Path:
    """The path of a program of the engine: `llama-server`.

    Raises FileNotFoundError where the build left it out (TIDEGATE_STOCK=OFF).
    """
    path = HOME / "bin" / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} was not built into this installation of tidegate-llama ({path})")
    return path


@cache
def bindings() -> ModuleType:
    """The C interface of llama.cpp, `llama_cpp.llama_cpp` of the libraries' own release.

    Only the bindings: the rest of that package is neither installed nor imported.
    """
    if "tidegate_engines.sdstage" in sys.modules:
        raise WrongProcess("the image engine is loaded in this process; the two never share one")
    if "llama_cpp" in sys.modules:
        raise WrongProcess("another llama_cpp was imported before; its libraries would be mixed with these")
    package = ModuleType("llama_cpp", "The bindings of the libraries in this installation.")
    package.__path__ = [str(HOME / "bindings")]
    sys.modules["llama_cpp"] = package
    with _environment(LLAMA_CPP_LIB_PATH=str(library_folder())):
        return importlib.import_module("llama_cpp.llama_cpp")


@cache
def vision_bindings() -> ModuleType:
    """The C interface of mtmd (images as tokens), `llama_cpp.mtmd_cpp` of the libraries' own release."""
    bindings()
    with _environment(MTMD_CPP_LIB=str(library_folder())):
        vision = importlib.import_module("llama_cpp.mtmd_cpp")
    _listen(vision)
    return vision


def hear(callback: Any) -> None:
    """Hands what all libraries of this process say, now and later, to a `llama_log_callback`, for good."""
    _hearers.append(callback)
    bindings().llama_log_set(callback, ctypes.c_void_p())
    if "llama_cpp.mtmd_cpp" in sys.modules:
        _listen(sys.modules["llama_cpp.mtmd_cpp"])


def _listen(vision: ModuleType) -> None:
    if _hearers:
        vision.mtmd_log_set(_hearers[-1], ctypes.c_void_p())
        vision.mtmd_helper_log_set(_hearers[-1], ctypes.c_void_p())


def build_id() -> str:
    """Which sources, which ggml, which options: states saved under another one are not restored."""
    return str(shim().llamaext_build().decode())


def attach_virtual_card(ledger_path: str | Path) -> list[str]:
    """Registers the cards of a ledger and returns their names; call it before the first model is loaded.

    A second call with the same ledger gives the same names; another ledger is refused (`UnusableLedger`).
    """
    return _attached("vcard_plugin_attach", os.fsencode(ledger_path))


def attach_hollow_card(like: str | Path = "") -> list[str]:
    """Registers cards that store and compute nothing, for asking what an engine would take; their names.

    They are of the kind of the cards in the ledger `like`, or of CUDA's kind; nobody else sees them.
    """
    return _attached("vcard_plugin_attach_hollow", os.fsencode(like))


def _attached(door: str, path: bytes) -> list[str]:
    ggml, plugin = _ggml(), ctypes.CDLL(str(card_plugin()))
    attach = getattr(plugin, door)
    attach.restype, attach.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    plugin.vcard_plugin_build_id.restype = ctypes.c_char_p
    host, card = shim().llamaext_ggml_id().decode(), plugin.vcard_plugin_build_id().decode()
    if host != card:
        raise UnusableLedger(f"engine and virtual card were compiled apart: [{host}], [{card}]")
    if refusal := attach(path):
        raise UnusableLedger(refusal.decode())
    registry = ggml.ggml_backend_reg_by_name(b"VCARD")
    if not registry:
        registry = ggml.ggml_backend_load(os.fsencode(card_plugin()))
    if not registry:
        raise UnusableLedger(f"ggml did not take {card_plugin()}")
    count = ggml.ggml_backend_reg_dev_count(registry)
    cards = (ggml.ggml_backend_reg_dev_get(registry, position) for position in range(count))
    return [ggml.ggml_backend_dev_name(card).decode() for card in cards]


def devices() -> list[Device]:
    """Every device ggml knows in this process, in its order."""
    ggml = _ggml()
    return [
        _described(ggml, ggml.ggml_backend_dev_get(position))
        for position in range(ggml.ggml_backend_dev_count())
    ]


def free_bytes_of(name: str) -> int:
    """What a device has free now. The others are not asked: on some, asking opens a context."""
    ggml = _ggml()
    found = ggml.ggml_backend_dev_by_name(name.encode())
    if not found:
        raise KeyError(f"there is no device {name!r}")
    return _described(ggml, found).free_bytes


def device_list(names: Sequence[str]) -> ctypes.Array[ctypes.c_void_p]:
    """What `llama_model_params.devices` takes (by `ctypes.cast` to c_void_p): these devices, in this order.

    Keep the array alive until the model is loaded. Raises KeyError for a name ggml does not know.
    """
    ggml = _ggml()
    found = [ggml.ggml_backend_dev_by_name(name.encode()) for name in names]
    for name, device in zip(names, found, strict=True):
        if not device:
            raise KeyError(f"there is no device {name!r}; known are {[known.name for known in devices()]}")
    return (ctypes.c_void_p * (len(found) + 1))(*found, None)


@cache
def shim() -> ctypes.CDLL:
    """llamaext: what only the engine's C++ interface tells (native/llama/ext/llamaext.h)."""
    bindings()
    loaded = ctypes.CDLL(str(library_folder() / "libllamaext.so"))
    loaded.llamaext_build.restype = ctypes.c_char_p
    loaded.llamaext_ggml_id.restype = ctypes.c_char_p
    return loaded


@cache
def _ggml() -> ctypes.CDLL:
    bindings()
    loaded = ctypes.CDLL(str(library_folder() / "libggml.so"))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, answer, arguments in (
        ("ggml_backend_load", pointer, [text]),
        ("ggml_backend_reg_by_name", pointer, [text]),
        ("ggml_backend_reg_dev_count", ctypes.c_size_t, [pointer]),
        ("ggml_backend_reg_dev_get", pointer, [pointer, ctypes.c_size_t]),
        ("ggml_backend_dev_count", ctypes.c_size_t, []),
        ("ggml_backend_dev_get", pointer, [ctypes.c_size_t]),
        ("ggml_backend_dev_by_name", pointer, [text]),
        ("ggml_backend_dev_name", text, [pointer]),
        ("ggml_backend_dev_description", text, [pointer]),
        ("ggml_backend_dev_type", ctypes.c_int, [pointer]),
        ("ggml_backend_dev_memory", None, [pointer, pointer, pointer]),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = answer, arguments
    return loaded


def _described(ggml: ctypes.CDLL, device: int) -> Device:
    free_bytes, total_bytes = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(device, ctypes.byref(free_bytes), ctypes.byref(total_bytes))
    return Device(
        name=ggml.ggml_backend_dev_name(device).decode(),
        description=ggml.ggml_backend_dev_description(device).decode(),
        kind=KINDS.get(ggml.ggml_backend_dev_type(device), "unknown"),
        total_bytes=total_bytes.value,
        free_bytes=free_bytes.value,
    )


@contextlib.contextmanager
def _environment(**changes: str) -> Iterator[None]:
    """The bindings read their folder from the environment; children should not inherit it."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
