"""Native engines of tidegate: `sdstage`, stable-diffusion.cpp in stages with the virtual card inside.

Owns nothing but the name: the module is compiled (its API is documented in sdstage.pyi), and programs that
tests and benchmarks compare with lie in `bin/`. Importing this package touches no device. Never import it in
a process that also uses llama.cpp: each brings a ggml of its own version.
"""

from __future__ import annotations

from pathlib import Path


def program(name: str) -> Path:
    """The path of a program of this distribution: `sd-cli` (the engine's own, unhooked) or `vcard_probe`.

    Raises FileNotFoundError where the build left it out (TIDEGATE_STOCK=OFF leaves out sd-cli).
    """
    path = Path(__file__).parent / "bin" / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} was not built into this installation of tidegate-engines ({path})")
    return path
