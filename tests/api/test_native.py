"""The native dialect against a real server: jobs, gallery, memory, models, guests, events, reload."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any  # Any: what a server answers is JSON of any shape

import httpx2
import pytest
from PIL import Image

from server_process import Running

WISH = {"prompt": "a lighthouse at dusk", "seed": 7}


@pytest.fixture(scope="module")
def made(server: Running) -> dict[str, Any]:
    """One finished job."""
    asked = server.client.post("/api/jobs", json=WISH, headers={"Idempotency-Key": "once"})
    assert asked.status_code == 202, asked.text
    assert asked.headers["location"] == f"/api/jobs/{asked.json()['id']}"
    view = server.ended(asked.json()["id"])
    assert view["phase"] == "done", view
    return view


def test_a_job_is_told_with_every_default_filled_in(made: dict[str, Any]) -> None:
    assert made["model"] == "tiny"
    assert (
        made["request"] | {"prompt": "a lighthouse at dusk", "width": 64, "steps": 2, "seed": 7}
        == made["request"]
    )
    assert [image["phase"] for image in made["images"]] == ["done"]
    assert set(made["images"][0]["executions"]) == {"encode", "denoise", "decode"}


def test_its_image_is_a_png_with_its_recipe(server: Running, made: dict[str, Any]) -> None:
    image = made["images"][0]["image"]
    file = server.client.get(f"/api/images/{image}")
    assert file.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(file.content)) as picture:
        assert picture.size == (64, 64)
        assert "a lighthouse at dusk" in picture.text["parameters"]  # type: ignore[attr-defined]  # PNG files have it
        pixels = picture.convert("RGB").tobytes()
    told = server.client.get(f"/api/images/{image}/metadata").json()
    assert told["pixels_sha256"] == hashlib.sha256(pixels).hexdigest()
    assert server.client.get(f"/api/jobs/{made['id']}/result").json() == {"images": [told]}
    assert told in server.client.get("/api/images").json()["images"]


def test_its_story_is_readable(server: Running, made: dict[str, Any]) -> None:
    assert server.client.get(f"/api/jobs/{made['id']}/story").json()["job"] == made["id"]


def test_the_same_key_is_the_same_job(server: Running, made: dict[str, Any]) -> None:
    again = server.client.post("/api/jobs", json=WISH, headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["id"]) == (200, made["id"])


def test_a_full_queue_says_when_to_come_back_and_cancelling_empties_it(server: Running) -> None:
    answers = []
    for seed in range(14):
        answers.append(server.client.post("/api/jobs", json={"prompt": "many", "seed": seed, "steps": 50}))
    full = answers[-1]
    assert full.status_code == 429, [answer.status_code for answer in answers]
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["code"] == "busy"
    jobs = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    for job in jobs:
        assert server.client.post(f"/api/jobs/{job}/cancel").status_code == 200
    assert {server.ended(job)["phase"] for job in jobs} <= {"cancelled", "done"}


def test_a_deleted_image_is_gone(server: Running) -> None:
    job = server.client.post("/api/jobs", json={**WISH, "seed": 8}).json()["id"]
    image = server.ended(job)["images"][0]["image"]  # type: ignore[index]  # a view is JSON of any shape
    assert server.client.delete(f"/api/images/{image}").json() == {"id": image}
    for path in (f"/api/images/{image}", f"/api/images/{image}/metadata"):
        assert server.client.get(path).status_code == 404
    assert server.client.delete(f"/api/images/{image}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/jobs/none", None, 404, "unknown_job"),
        ("GET", "/api/jobs/none/events", None, 404, "unknown_job"),
        ("POST", "/api/jobs", {}, 422, "bad_request"),
        ("POST", "/api/jobs", {"prompt": "x", "model": "nope"}, 404, "unknown_model"),
        ("POST", "/api/jobs", {"prompt": "x", "model": "../../etc/passwd"}, 404, "unknown_model"),
        ("POST", "/api/jobs", {"prompt": "x", "steps": "2"}, 422, "bad_request"),
        ("POST", "/api/jobs", {"prompt": "x", "width": 128, "height": 64}, 400, "bad_size"),
        ("POST", "/api/jobs", {"prompt": "a " + "x" * 2_001}, 400, "endless_word"),
        ("POST", "/api/jobs", {"prompt": "a", "negative": "?" * 2_001}, 400, "endless_word"),
        ("POST", "/api/jobs", {"prompt": "x", "sampler": "nope"}, 400, "unknown_sampler"),
        ("POST", "/api/jobs", {"prompt": "x", "picture": "%"}, 400, "picture_unreadable"),
        ("POST", "/api/jobs", {"prompt": "x", "picture": "AAAA"}, 400, "picture_unreadable"),
        ("POST", "/api/models/nope/load", None, 404, "unknown_model"),
        ("GET", "/internal/leases/none", None, 404, "unknown_lease"),
        ("GET", "/nowhere", None, 404, "no_such_path"),
        ("PATCH", "/api/jobs", None, 405, "method_refused"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_native_envelope(
    server: Running, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = server.client.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.json()["error"]["message"]


def test_an_unknown_model_names_the_known_ones(server: Running) -> None:
    answer = server.client.post("/api/jobs", json={"prompt": "x", "model": "nope"})
    assert "tiny" in answer.json()["error"]["remedy"]


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 100_000, b'"\\ud800"', b'{"prompt": NaN}', b"\xff", b"9" * 5_000]
)
def test_what_is_no_json_is_refused(server: Running, body: bytes) -> None:
    answer = server.client.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text


def test_memory_adds_up(server: Running, made: dict[str, Any]) -> None:
    pools = {pool["name"]: pool for pool in server.client.get("/api/vram").json()["pools"]}
    card = pools["VCARD0"]
    assert card["total_bytes"] == 3 * 2**30
    assert card["used_bytes"] + card["free_bytes"] == card["total_bytes"]
    assert {"VCARD0", "ram"} == set(pools)
    for tenant in card["tenants"]:
        assert tenant["predicted_bytes"] == sum(part["predicted_bytes"] for part in tenant["parts"])


def test_health_tells_workers_and_problems(server: Running, made: dict[str, Any]) -> None:
    health = server.client.get("/internal/health").json()
    assert health["pid"] == server.pid
    worker = next(worker for worker in health["workers"] if worker["kind"] == "image")
    assert {"kind", "pid", "incarnation", "state", "memory_bytes", "last_error"} <= set(worker)


def test_a_plan_explains_itself_and_does_nothing(server: Running) -> None:
    before = len(server.client.get("/api/jobs?count_max=1000").json()["jobs"])
    plan = server.client.post("/api/plan", json=WISH).json()
    assert plan["is_possible"] and plan["explanation"] and plan["cost_ms"] > 0
    assert [stage["stage"] for stage in plan["stages"]] == ["encode", "denoise", "decode"]
    assert len(server.client.get("/api/jobs?count_max=1000").json()["jobs"]) == before


def test_models_and_residency(server: Running) -> None:
    (model,) = server.client.get("/api/models").json()["models"]
    assert (model["name"], model["is_default"]) == ("tiny", True)
    assert server.client.post("/api/models/tiny/load").json()["name"] == "tiny"
    assert "tiny" in server.client.get("/api/residency").json()["models"]


def test_a_lease_is_granted_kept_and_given_back(server: Running) -> None:
    asked = server.client.post(
        "/internal/negotiate_vram", json={"bytes": 2**20, "purpose": "a test", "hold_ms": 60_000}
    )
    assert (asked.status_code, asked.json()["state"]) == (200, "granted")
    lease = f"/internal/leases/{asked.json()['lease']}"
    assert server.client.get(lease).json()["bytes"] == 2**20
    assert (
        server.client.put(lease, json={"hold_ms": 120_000}).json()["expires_ms"] > asked.json()["expires_ms"]
    )
    assert server.client.delete(lease).status_code == 200
    assert server.client.get(lease).json()["state"] == "ended"


def test_a_lease_that_cannot_be_had_says_what_could(server: Running) -> None:
    asked = server.client.post("/internal/negotiate_vram", json={"bytes": 3 * 2**30, "purpose": "too much"})
    assert asked.status_code == 409
    denied = asked.json()
    assert denied["error"]["code"] == "denied"
    assert 0 < denied["largest_now_bytes"] <= 3 * 2**30
    assert denied["alternatives"]


def events_of(answer: httpx2.Response) -> Iterator[tuple[int, str, dict[str, Any]]]:
    number, name = -1, ""
    for line in answer.iter_lines():
        field, _, value = line.partition(": ")
        match field:
            case "id":
                number = int(value)
            case "event":
                name = value
            case "data":
                yield number, name, json.loads(value)
                number, name = -1, ""
            case _:
                pass


def test_whoever_reconnects_gets_what_was_missed(server: Running, made: dict[str, Any]) -> None:
    with httpx2.stream("GET", f"{server.url}/api/events?after=0") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events_of(answer)
        seen = [number for (number, name, _), _ in zip(found, range(12), strict=False) if name != "lost"]
    assert seen == sorted(set(seen))
    with httpx2.stream("GET", f"{server.url}/api/events", headers={"Last-Event-ID": str(seen[3])}) as answer:
        found = events_of(answer)
        again = [next(found)[0] for _ in seen[4:]]
    assert again == seen[4:]


def test_a_watched_job_tells_progress_and_ends(server: Running) -> None:
    job = server.client.post("/api/jobs", json={**WISH, "seed": 9, "steps": 3}).json()["id"]
    with httpx2.stream("GET", f"{server.url}/api/jobs/{job}/events", timeout=300) as answer:
        told = [(name, data) for _, name, data in events_of(answer)]
    assert told[-1][0] == "end"
    previews = [data["preview"] for name, data in told if name == "progress" and data["preview"]]
    assert previews, [name for name, _ in told]


def test_metrics_are_read_by_prometheus(server: Running, made: dict[str, Any]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {
        family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)
    }
    assert families["tidegate_memory_total_bytes"].samples
    assert families["tidegate_http_requests"].samples


def test_reload_takes_up_new_limits_without_losing_a_job(server: Running, made: dict[str, Any]) -> None:
    text = server.config.read_text(encoding="utf-8")
    try:
        server.config.write_text(text.replace("steps = 2", "steps = 1"), encoding="utf-8")
        assert server.client.post("/api/reload").json() == {"changed": ["defaults"], "restart_needed": []}
        server.config.write_text("[listen]\nprot = 1\n", encoding="utf-8")
        refused = server.client.post("/api/reload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_settings")
    finally:
        server.config.write_text(text, encoding="utf-8")
    assert server.client.post("/api/reload").json()["changed"] == ["defaults"]
    assert server.client.get(f"/api/jobs/{made['id']}").status_code == 200


def test_reload_takes_up_a_model_and_names_what_needs_a_restart(server: Running) -> None:
    text = server.config.read_text(encoding="utf-8")
    model = text.partition("[[models]]")[2].partition("[policy]")[0]
    more = text.replace(
        "[policy]", f"[[models]]{model}".replace('"tiny"', '"second"').replace("gpt-", "my-") + "[policy]"
    )
    try:
        server.config.write_text(more.replace("3GiB", "2GiB"), encoding="utf-8")
        told = server.client.post("/api/reload").json()
        assert told == {"changed": ["model second added"], "restart_needed": ["cards"]}
        job = server.client.post("/api/jobs", json={**WISH, "model": "my-image-1"}).json()
        assert (job["model"], server.ended(job["id"])["phase"]) == ("second", "done")
    finally:
        server.config.write_text(text, encoding="utf-8")
    assert server.client.post("/api/reload").json()["changed"] == ["model second removed"]


def test_the_state_folder_is_closed_to_others(server: Running) -> None:
    assert server.state.stat().st_mode & 0o077 == 0
