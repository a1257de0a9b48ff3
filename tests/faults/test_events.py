"""A client that reads a job's events in pieces sees each of them once, wherever its connection breaks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.faults import invariants
from tests.faults.cluster import STEADY, Cluster
from tests.faults.script import Script
from tests.integration.service import Service, start_api, stop

READERS = 8


@pytest.fixture
def api(either: Cluster) -> Iterator[Service]:
    service = Service(dict(either.environment), either.folder)
    start_api(service, "api")
    yield service
    stop(service.processes)


def read_in_pieces(url: str, seed: int) -> list[tuple[int, str]]:
    """Seq and type of what comes; the connection breaks after none to three events, until there are no more."""
    chance, seen = random.Random(seed), list[tuple[int, str]]()
    with httpx2.Client(timeout=60) as client:
        while True:
            headers = {"Accept": "text/event-stream"}
            if seen:
                headers["Last-Event-ID"] = str(seen[-1][0])
            with client.stream("GET", url, headers=headers) as answer:
                if answer.status_code == 204:
                    return seen
                wanted = chance.randint(0, 3)
                for event in events_of(answer):
                    if wanted == 0:
                        break  # this one has been sent, and is lost
                    assert not seen or event > seen[-1], f"{event} again after {seen}"
                    seen.append(event)
                    wanted -= 1


def events_of(answer: httpx2.Response) -> Iterator[tuple[int, str]]:
    """Whole events only: a blank line ends one."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(":")
        if line:
            fields[name] = value.strip()
        elif "data" in fields:
            event = json.loads(fields["data"])
            assert (str(event["seq"]), event["type"]) == (fields["id"], fields["event"])
            yield event["seq"], event["type"]
            fields = {}


def test_each_event_is_seen_once(either: Cluster, api: Service) -> None:
    """By readers that come before the job starts, and are there while it is cancelled."""
    either.worker(**STEADY)
    either.gates.hold("regularizing")
    jobs = [either.submit(Script(step_seconds=0.05)) for _ in range(2)]
    with ThreadPoolExecutor(READERS) as pool:
        reading = [
            (job_id, pool.submit(read_in_pieces, f"{api.url}/v1/jobs/{job_id}/events", seed))
            for seed in range(READERS // 2)
            for job_id in jobs
        ]
        either.reached("regularizing")
        either.cancel(jobs[0])
        either.gates.open("regularizing")
        seen = [(job_id, found.result()) for job_id, found in reading]
    for job_id, events in seen:
        listed = api.get(f"/v1/jobs/{job_id}/events")["data"]
        assert events == [(event["seq"], event["type"]) for event in listed]
        assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
    assert invariants.check(either) == {"cancelled": 1, "succeeded": 1}
