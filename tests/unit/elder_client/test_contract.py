"""The client's types against the service's own declarations, which the client does not import."""

from __future__ import annotations

import pytest

import elder_core.spec
from api import schemas
from elder_client import types
from elder_client.protocol import SubmitOptions
from elder_service.jobs import events
from elder_service.jobs.states import Status
from tests.unit.elder_client.scripted import REPORT, job

SERVED = {**vars(elder_core.spec), **vars(schemas)}
MODELS = [kind for kind in vars(types).values() if isinstance(kind, type) and issubclass(kind, types.Model)]


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind is not types.Model], ids=lambda kind: kind.__name__)
def test_the_service_sends_every_field_that_the_client_reads(kind: type[types.Model]) -> None:
    assert set(kind.model_fields) <= set(SERVED[kind.__name__].model_fields)


def test_the_states_are_the_same() -> None:
    assert {str(status) for status in types.Status} == {str(status) for status in Status}
    assert {str(status) for status in types.ENDED} == {str(status) for status in Status if status.ended}


def test_the_events_are_the_same() -> None:
    assert set(types.EventType) == {
        value for name, value in vars(events).items() if name.isupper() and name != "ENDING"
    }
    assert types.LAST_EVENTS == events.ENDING


def test_every_field_of_a_job_can_be_submitted() -> None:
    sent = set(SubmitOptions.__annotations__) - {"revision", "idempotency_key"}
    assert sent | {"model"} == set(schemas.JobCreate.model_fields)


def test_unknown_fields_states_and_events_are_kept() -> None:
    found = types.Job.model_validate(job("pondering", novelty=3))
    assert found.status == "pondering"
    assert not found.ended
    assert found.model_dump(mode="json")["novelty"] == 3
    event = types.JobEvent.model_validate({"seq": 1, "type": "job.sighed", "at": "2026-01-01T00:00:00Z"})
    assert event.type == "job.sighed"
    assert not event.last
    assert types.Report.model_validate(REPORT).model_extra == {"weight_label": REPORT["weight_label"]}
