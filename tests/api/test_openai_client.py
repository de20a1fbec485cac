"""The official client against a real server: generate, stream, edit, list, and be refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import openai
import pytest
from PIL import Image

from server_process import Running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="not-needed", timeout=300, max_retries=0
    ) as found:
        yield found


def picture(b64: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64 or "")))


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tidegate"


def test_images_are_generated_and_edited(client: openai.OpenAI, server: Running) -> None:
    made = client.images.generate(
        prompt="a lighthouse", model="gpt-image-1", n=2, size="64x64", extra_body={"steps": 1, "seed": 5}
    )
    assert made.data is not None
    assert [picture(one.b64_json).size for one in made.data] == [(64, 64)] * 2
    assert [(one.model_extra or {})["seed"] for one in made.data] == [5, 6]
    assert (made.size, made.output_format) == ("64x64", "png")
    assert set(made.model_extra or {}) >= {"job", "notices"}
    edited = client.images.edit(
        image=("a.png", base64.b64decode(made.data[0].b64_json or ""), "image/png"),
        prompt="at night",
        output_format="jpeg",
        extra_body={"steps": 2, "strength": 0.5, "seed": 5},
    )
    assert edited.data is not None
    assert picture(edited.data[0].b64_json).format == "JPEG"


def test_partial_images_are_streamed_before_the_finished_one(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a lighthouse", stream=True, partial_images=2, extra_body={"steps": 4, "seed": 6}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed",
    ]  # fmt: skip
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert {picture(event.b64_json).size for event in events} == {(64, 64)}


def test_an_image_may_be_fetched_by_its_address(client: openai.OpenAI, server: Running) -> None:
    made = client.images.generate(
        prompt="a lighthouse", response_format="url", extra_body={"steps": 1, "seed": 5}
    )
    assert made.data is not None
    assert server.client.get(made.data[0].url or "").headers["content-type"] == "image/png"


def test_fields_that_mean_nothing_here_are_named(client: openai.OpenAI) -> None:
    extra = {"steps": 1, "seed": 5, "stepz": 3, "num_inference_steps": 4}
    made = client.images.generate(prompt="a lighthouse", size="64x64", style="vivid", extra_body=extra)
    told = (made.model_extra or {})["notices"]
    assert told[0] == "These fields mean nothing here and were left alone: stepz, num_inference_steps."
    stream = client.images.generate(prompt="a lighthouse", size="64x64", stream=True, extra_body=extra)
    assert (list(stream)[-1].model_extra or {})["notices"][0] == told[0]


def test_refusals_come_as_the_errors_of_that_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="x", model="nope")
    assert unknown.value.code == "model_not_found"
    assert "tiny" in str(unknown.value)
    with pytest.raises(openai.BadRequestError) as size:
        client.images.generate(prompt="x", size="63x64")
    assert size.value.code == "bad_size"
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="")
    with pytest.raises(openai.BadRequestError) as mask:
        client.images.edit(image=b"x", mask=b"x", prompt="x")
    assert mask.value.code == "mask_not_supported"
    with pytest.raises(openai.BadRequestError) as broken:
        client.images.edit(image=("a.png", b"no picture", "image/png"), prompt="x")
    assert broken.value.code == "picture_unreadable"
    with pytest.raises(openai.NotFoundError) as chat:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
    assert chat.value.code == "model_not_found"


def job_of(server: Running, prompt: str) -> str:
    jobs = server.client.get("/api/jobs").json()["jobs"]
    return next(str(job["id"]) for job in jobs if job["request"]["prompt"] == prompt)


def test_whoever_hangs_up_takes_the_job_along(client: openai.OpenAI, server: Running) -> None:
    prompt = "nobody waits for this"
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).images.generate(prompt=prompt, extra_body={"steps": 900, "seed": 5})
    assert server.ended(job_of(server, prompt))["phase"] == "cancelled"


def test_whoever_leaves_a_stream_takes_the_job_along(client: openai.OpenAI, server: Running) -> None:
    prompt = "nobody watches this"
    stream = client.images.generate(prompt=prompt, stream=True, extra_body={"steps": 900, "seed": 5})
    job = job_of(server, prompt)
    stream.close()
    assert server.ended(job)["phase"] == "cancelled"


def test_a_job_with_a_key_outlives_its_client(client: openai.OpenAI, server: Running) -> None:
    prompt, key = "somebody comes back for this", {"Idempotency-Key": "back"}
    body = {"steps": 3, "seed": 5}
    with pytest.raises(openai.APITimeoutError):
        hasty = client.with_options(timeout=0.5)
        hasty.images.generate(prompt=prompt, extra_headers=key, extra_body=body)
    made = client.images.generate(prompt=prompt, extra_headers=key, extra_body=body)
    assert (made.model_extra or {})["job"] == job_of(server, prompt)
