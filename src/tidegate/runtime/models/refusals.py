"""Refusals: every sentence said about a model file that cannot be used, in one place.

Owns codes, wording and remedies; each function makes one `ClientError`. It decides nothing: its neighbours
(`opening`, the header readers, `soundness`, `shelf`) find the fault and pick the refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tidegate.core.faults import ClientError

FETCH_AGAIN = "Download the file again and compare its size and checksum with the source."


def quoted(name: str, *, length_max: int = 80) -> str:
    """A name out of a file, made safe to print: escaped to ASCII and cut."""
    text = name.encode("ascii", "backslashreplace").decode("ascii")
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return f"'{text[:length_max]}...'" if len(text) > length_max else f"'{text}'"


def named(path: Path) -> str:
    """The path as it is, unless printing it would break the line or the terminal."""
    text = str(path)
    return text if text.isprintable() else quoted(text, length_max=200)


def not_found(path: Path) -> ClientError:
    return ClientError(
        f"{named(path)}: there is no such file.", remedy="Check the path.", code="model_not_found"
    )


def unknown_name(name: str, *, folder: Path | None, near: Sequence[str], known: Sequence[str]) -> ClientError:
    where = f" in {named(folder)}" if folder else ""
    if near:
        remedy = f"Did you mean {' or '.join(quoted(n) for n in near)}?"
    elif known:
        shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        remedy = f"Known models: {shown}."
    else:
        remedy = "Give the path of a safetensors or GGUF file, or put one into the models folder."
    return ClientError(
        f"There is no model named {quoted(name)}{where}.", remedy=remedy, code="model_not_found"
    )


def is_folder(path: Path) -> ClientError:
    return ClientError(
        f"{named(path)} is a folder, and folders in diffusers layout are not supported yet.",
        remedy="Give a single safetensors or GGUF file.",
        code="model_is_folder",
    )


def not_a_regular_file(path: Path) -> ClientError:
    return ClientError(
        f"{named(path)} is not a regular file.",
        remedy="Give a safetensors or GGUF file.",
        code="model_unreadable",
    )


def unreadable(path: Path, reason: str) -> ClientError:
    return ClientError(
        f"{named(path)} cannot be read: {reason}.",
        remedy="Check its permissions and the disk.",
        code="model_unreadable",
    )


def empty(path: Path) -> ClientError:
    return ClientError(f"{named(path)} is empty.", remedy=FETCH_AGAIN, code="model_empty")


def not_a_model(path: Path, what: str) -> ClientError:
    return ClientError(
        f"{named(path)} is not a model file: it is {what}.",
        remedy="Give a safetensors or GGUF file.",
        code="not_a_model",
    )


def large_file_pointer(path: Path) -> ClientError:
    return ClientError(
        f"{named(path)} is not a model file: it is a Git LFS pointer, a note that stands for the real file.",
        remedy="Fetch the file itself with `git lfs pull`, or download it.",
        code="not_a_model",
    )


def pickle(path: Path) -> ClientError:
    return ClientError(
        f"{named(path)} is a PyTorch pickle, which can run code when it is opened and is not supported.",
        remedy="Use a safetensors or GGUF version of this model.",
        code="pickle_not_supported",
    )


def truncated(path: Path, *, declared_bytes: int, present_bytes: int) -> ClientError:
    missing_bytes = declared_bytes - present_bytes
    return ClientError(
        f"{named(path)} is cut short: its header declares {declared_bytes} bytes,"
        f" the file has {present_bytes} ({missing_bytes} missing).",
        remedy=FETCH_AGAIN,
        code="model_truncated",
    )


def truncated_header(path: Path) -> ClientError:
    return ClientError(
        f"{named(path)} is cut short inside its header.", remedy=FETCH_AGAIN, code="model_truncated"
    )


def corrupt(path: Path, problem: str) -> ClientError:
    return ClientError(f"{named(path)} is damaged: {problem}.", remedy=FETCH_AGAIN, code="model_corrupt")


def beyond_limit(path: Path, *, what: str, value: int, value_max: int) -> ClientError:
    return ClientError(
        f"{named(path)} is damaged or not a model: {what} is {value}, and at most {value_max} is read.",
        remedy=FETCH_AGAIN,
        code="model_corrupt",
    )


def unknown_dtype(path: Path, *, tensor: str, dtype: str) -> ClientError:
    return ClientError(
        f"{named(path)} holds tensor {quoted(tensor)} in the unknown type {quoted(dtype)}.",
        remedy="Use another version of this model (f16, bf16, f32, or a GGUF quantisation).",
        code="unknown_dtype",
    )


def unsupported_version(path: Path, version: str) -> ClientError:
    return ClientError(
        f"{named(path)} is {version}, which is not supported.",
        remedy="Convert it again to GGUF version 3 (little-endian).",
        code="gguf_version_not_supported",
    )


def not_an_image_model(path: Path, what: str) -> ClientError:
    return ClientError(
        f"{named(path)} is not an image model: it is {what}.",
        remedy="Give the checkpoint or the diffusion model with --model.",
        code="not_an_image_model",
    )


def not_a_language_model(path: Path, what: str) -> ClientError:
    return ClientError(
        f"{named(path)} is not a language model that can be served: it is {what}.",
        remedy="Give a GGUF file of a language model.",
        code="not_a_language_model",
    )


def incomplete_language_model(path: Path, lacking: str) -> ClientError:
    return ClientError(f"{named(path)} holds no {lacking}.", remedy=FETCH_AGAIN, code="model_incomplete")


def unusable_template(path: Path, why: str) -> ClientError:
    return ClientError(
        f"{named(path)} cannot be used as a chat template: {why}.",
        remedy="Give a text file with a Jinja template, or leave the setting out.",
        code="bad_template",
    )


def projector_does_not_match(path: Path, *, found_count: int, model: Path, wanted_count: int) -> ClientError:
    return ClientError(
        f"{named(path)} makes embeddings of {found_count} values, but {named(model)} takes {wanted_count}.",
        remedy="Give the projector (mmproj) that was made for this model.",
        code="projector_does_not_match",
    )


def wrong_shape(path: Path, family: str, *, tensor: str, found: Iterable[int], expected: str) -> ClientError:
    shape = "x".join(str(n) for n in found) or "a scalar"
    return ClientError(
        f"{named(path)} is not a sound {family} model: tensor {quoted(tensor)} has the shape {shape},"
        f" expected {expected}.",
        remedy=FETCH_AGAIN,
        code="wrong_shapes",
    )


def wrong_role(path: Path, *, option: str, wanted: str, what: str) -> ClientError:
    return ClientError(
        f"{named(path)} was given as {option}, but it is {what}.",
        remedy=f"Give {wanted} with {option}.",
        code="wrong_component",
    )


def component_missing(path: Path, component: str, *, remedy: str) -> ClientError:
    return ClientError(
        f"{named(path)} holds no {component}.", remedy=remedy, code=f"{component.replace(' ', '_')}_missing"
    )


def vae_missing(path: Path, *, family: str, channels_count: int) -> ClientError:
    latents = f" ({channels_count} latent channels)" if channels_count else ""
    return ClientError(
        f"{named(path)} holds no VAE, and there is none for {family}{latents} beside it.",
        remedy="Give one with --vae FILE or --taesd FILE, or put it into the same folder.",
        code="vae_missing",
    )


def vae_does_not_match(path: Path, *, found_count: int, family: str, wanted_count: int) -> ClientError:
    return ClientError(
        f"{named(path)} decodes {found_count} latent channels, but {family} makes {wanted_count}.",
        remedy=f"Give a VAE or TAESD made for {family}.",
        code="vae_does_not_match",
    )
