"""Cancelling, broken numbers and wrong values: each is its own exception, and the engine stays usable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine_process import SMALL, EngineProcess, tiny_files

SCRIPT = """
model = open_checkpoint()
wanted = request()
said = {}

def refused(name, call):
    try:
        call()
    except sdstage.EngineError as refusal:
        said[name] = [type(refusal).__name__, str(refusal)]

refused("not loaded", lambda: model.encode(wanted))
refused("component", lambda: model.load("unet"))
refused("width", lambda: model.check(request(width=63)))
refused("pixels", lambda: model.check(request(width=32768, height=32768)))
refused("steps", lambda: model.check(request(steps=0)))
refused("sampler", lambda: model.check(request(sampler="euler_b")))
refused("device", lambda: sdstage.Checkpoint(arguments["files"], device="CUDA7"))
refused("weight type", lambda: sdstage.Checkpoint(arguments["files"], weight_type="q9"))
refused("no vae", lambda: sdstage.Checkpoint({"model": arguments["files"]["model"]}).load("vae", "cpu"))
refused("no file", lambda: sdstage.Checkpoint({"model": "/nowhere.safetensors"}))
refused("kind", lambda: sdstage.Checkpoint({"unet": "x"}))

model.load("text_encoder", "cpu")
embeddings = model.encode(wanted)
model.load("diffusion", "cpu")
undisturbed = digest(model.denoise(wanted, embeddings))
counted = model.stage_bytes()["ram_bytes"]
refused("cancelled", lambda: model.denoise(wanted, embeddings, progress=lambda step, *_: step < 2))
said["bytes after cancelling"] = model.stage_bytes()["ram_bytes"] - counted
said["same latent afterwards"] = digest(model.denoise(wanted, embeddings)) == undisturbed
def broken(value):
    arrays = {name: array.copy() for name, array in embeddings.items()}
    arrays["cond.c_crossattn"][0, :, :] = value
    return arrays
refused("nan", lambda: model.denoise(wanted, broken(np.nan)))
refused("overflow", lambda: model.denoise(wanted, broken(3e38)))
latent = np.full((1, *model.latent_shape(64, 64)), np.inf, dtype=np.float32)
model.load("vae", "cpu")
refused("inf", lambda: model.decode(wanted, latent))
refused("shape", lambda: model.decode(wanted, latent[:, :, :4]))

previews = []
def watch(step, steps, preview):
    previews.append((step, steps, None if preview is None else preview.shape))
    return True
model.denoise(wanted, embeddings, progress=watch)
said["previews"] = previews
def failing(step, steps, preview):
    raise KeyError("from the callback")
try:
    model.denoise(wanted, embeddings, progress=failing)
except KeyError as error:
    said["callback"] = str(error)
say(**said)
"""


def test_every_refusal_names_its_kind_and_the_value(synthetic_models: Callable[[str], Path]) -> None:
    with EngineProcess(SCRIPT, files=tiny_files(synthetic_models("sd1-tiny")), request=SMALL) as engine:
        said = engine.only()
    assert said["not loaded"] == ["InvalidRequest", "the text_encoder is not loaded"]
    assert said["component"] == [
        "InvalidRequest",
        "'unet' is no component; there are text_encoder, diffusion, vae",
    ]
    assert said["width"] == ["InvalidRequest", "width and height must be positive multiples of 64, not 63x64"]
    assert said["pixels"] == ["InvalidRequest", "at most 67108864 pixels are possible"]
    assert said["steps"] == ["InvalidRequest", "steps must be between 1 and 1000, not 0"]
    assert said["sampler"] == ["InvalidRequest", "'euler_b' is no sampler"]
    assert said["device"] == ["InvalidRequest", "there is no device CUDA7; there are: CPU"]
    assert said["weight type"] == ["InvalidRequest", "'q9' is no weight type the engine knows"]
    assert said["no vae"] == ["InvalidModel", "the files hold no vae"]
    assert said["no file"] == ["InvalidModel", "/nowhere.safetensors cannot be read as a model file"]
    assert said["kind"] == ["InvalidRequest", "'unet' is no kind of model file"]
    assert said["cancelled"] == ["Cancelled", "cancelled at step 2 of 3"]
    assert said["bytes after cancelling"] == 0
    assert said["same latent afterwards"]
    assert said["nan"] == ["NotFinite", "the embeddings held NaN or infinite values"]
    assert said["overflow"] == ["NotFinite", "a sampling step held NaN or infinite values"]
    assert said["inf"] == ["NotFinite", "the latent held NaN or infinite values"]
    assert said["shape"][0] == "InvalidRequest"
    assert said["previews"] == [[0, 3, None], [1, 3, [8, 8, 3]], [2, 3, [8, 8, 3]], [3, 3, [8, 8, 3]]]
    assert said["callback"] == "'from the callback'"
