"""A stream of events ends with its job, wherever it is taken up."""

from __future__ import annotations

import anyio
import pytest
from fastapi.testclient import TestClient

from api.dependencies import Services
from api.routes import events
from elder_service.jobs import service
from tests.unit.api.calls import submit

STREAM = {"Accept": "text/event-stream"}


def test_taken_up_at_the_last_event_there_is_nothing(client: TestClient) -> None:
    job_id = submit(client)["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    url = f"/v1/jobs/{job_id}/events"
    for number in ("2", "99"):
        answer = client.get(url, headers={**STREAM, "Last-Event-ID": number})
        assert (answer.status_code, answer.content) == (204, b"")
    assert client.get(url, params={"after": 2}, headers=STREAM).status_code == 204
    listed = client.get(url, params={"after": 2})
    assert (listed.status_code, listed.json()["data"]) == (200, [])


@pytest.mark.parametrize("unknown", [False, True], ids=["the ending event", "one that is not known to end a job"])
def test_a_stream_ends_when_the_job_does(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch, *, unknown: bool
) -> None:
    job_id = submit(client)["id"]
    if unknown:
        monkeypatch.setattr(events.events, "ENDING", frozenset())
    monkeypatch.setattr(events, "POLL_SECONDS", 0.001)

    async def read() -> list[bytes]:
        seen = []
        with anyio.fail_after(20):
            async for part in events._stream(services, job_id, 1):
                seen.append(part)
        return seen

    async def cancel_meanwhile() -> list[bytes]:
        seen: list[bytes] = []

        async def reader() -> None:
            seen.extend(await read())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader)
            await anyio.sleep(0.02)
            await anyio.to_thread.run_sync(cancel)
        return seen

    def cancel() -> None:
        with services.sessions.begin() as session:
            service.cancel(session, job_id)

    seen = anyio.run(cancel_meanwhile)
    assert [b"id: 2" in part for part in seen] == [True]
