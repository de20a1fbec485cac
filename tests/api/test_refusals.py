"""Refusals: which fault gets which status, and how each dialect says it."""

from __future__ import annotations

import json

import pytest

from tidegate.api import refusals
from tidegate.api.native import envelope as native
from tidegate.api.openai import envelope as openai
from tidegate.core.faults import Bug, CapacityError, ClientError, Fault, WorkerError

CASES: list[tuple[Fault, int, int]] = [
    (ClientError("no", code="bad_size"), 400, 0),
    (ClientError("no", code="unknown_sampler"), 400, 0),
    (ClientError("no", code="unknown_model"), 404, 0),
    (ClientError("no", code="unknown_job"), 404, 0),
    (ClientError("no", code="picture_too_large"), 413, 0),
    (CapacityError("full", code="busy", retry_after_ms=2_500), 429, 3),
    (CapacityError("full", code="busy"), 429, 1),
    (CapacityError("no disk", code="disk", retry_after_ms=1), 503, 1),
    (CapacityError("never", code="out_of_memory"), 409, 0),
    (WorkerError("it died"), 500, 0),
    (Bug("it cannot be"), 500, 0),
]


@pytest.mark.parametrize(("fault", "status", "retry_after_s"), CASES)
def test_a_fault_has_one_status_in_both_dialects(fault: Fault, status: int, retry_after_s: int) -> None:
    refusal = refusals.refusal_of(fault)
    for response in (native.response(refusal), openai.response(refusal)):
        assert response.status_code == status
        assert response.headers.get("retry-after") == (str(retry_after_s) if retry_after_s else None)


def test_the_native_envelope_says_code_message_and_remedy() -> None:
    fault = CapacityError("The queue is full.", remedy="Come back.", code="busy", retry_after_ms=2_500)
    said = json.loads(bytes(native.response(refusals.refusal_of(fault)).body))
    assert said == {
        "error": {
            "code": "busy", "message": "The queue is full.", "remedy": "Come back.", "param": "",
            "retry_after_ms": 2_500,
        }
    }  # fmt: skip


def test_the_openai_envelope_says_what_its_clients_look_for() -> None:
    fault = ClientError("There is no model 'x'.", remedy="There are: y.", code="unknown_model")
    response = openai.response(refusals.refusal_of(fault))
    assert json.loads(bytes(response.body)) == {
        "error": {
            "message": "There is no model 'x'. There are: y.", "type": "not_found_error", "param": None,
            "code": "model_not_found",
        }
    }  # fmt: skip
    assert response.headers["x-should-retry"] == "false"


def test_clients_of_that_dialect_repeat_only_what_may_succeed() -> None:
    later = openai.response(refusals.refusal_of(CapacityError("full", code="busy", retry_after_ms=1)))
    never = openai.response(refusals.refusal_of(WorkerError("it died")))
    assert (later.headers["x-should-retry"], never.headers["x-should-retry"]) == ("true", "false")
