"""kill -9 of a job's process, of its supervisor, and of both at once, at every boundary of an attempt."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from elder_service.storage.base import journal_prefix
from tests.faults import invariants
from tests.faults.checkpoints import last_checkpoint
from tests.faults.cluster import STEADY, Cluster
from tests.faults.script import Script

IN_THE_JOB = ("selecting", "mid-upload", "uploaded")
IN_THE_SUPERVISOR = ("claimed", "before-last-update", "after-last-update")


def strike(cluster: Cluster, job_id: str, point: str, victim: str) -> None:
    """Kill the victim while the first attempt stands at `point`, and leave that held."""
    held = cluster.reached(point)
    assert cluster.job(job_id).attempt == 1
    worker = next(worker for worker in cluster.workers if worker.is_running())
    everything = [worker, *worker.children(recursive=True)]
    victims = {"runner": [held], "supervisor": [worker], "group": everything}[victim]
    for process in victims:
        process.kill()
    gone = victims if victim == "runner" else everything
    cluster.until(lambda: {*gone} & {*cluster.processes()}, lambda left: not left)


SHORT = {("mid-upload", "group"), ("before-last-update", "supervisor")}


def blows(points: tuple[str, ...], victims: tuple[str, ...]) -> list[ParameterSet]:
    return [
        pytest.param(point, victim, marks=() if (point, victim) in SHORT else pytest.mark.faults)
        for point in points
        for victim in victims
    ]


@pytest.mark.parametrize(("point", "victim"), blows(IN_THE_JOB, ("runner", "supervisor", "group")))
def test_killed_within_the_job(either: Cluster, point: str, victim: str) -> None:
    either.worker(**STEADY)
    either.gates.hold(point)
    job_id = either.submit()
    strike(either, job_id, point, victim)
    either.gates.open(point)
    if victim != "runner":
        either.lease_runs_out(job_id)
        either.worker(**STEADY)
    assert (either.ended(job_id).status, either.job(job_id).attempt) == ("succeeded", 2)
    assert either.events(job_id) == ["job.created", "job.started", "job.requeued", "job.started", "job.succeeded"]
    assert invariants.check(either) == {"succeeded": 1}


@pytest.mark.parametrize(("point", "victim"), blows(IN_THE_SUPERVISOR, ("supervisor", "group")))
def test_killed_within_the_supervisor(either: Cluster, point: str, victim: str) -> None:
    either.worker(**STEADY)
    either.gates.hold(point)
    job_id = either.submit(Script())
    strike(either, job_id, point, victim)
    either.gates.open(point)
    attempts = 1 if point == "after-last-update" else 2
    if attempts == 2:
        either.lease_runs_out(job_id)
    either.worker(**STEADY)
    assert (either.ended(job_id).status, either.job(job_id).attempt) == ("succeeded", attempts)
    assert invariants.check(either) == {"succeeded": 1}


@pytest.mark.parametrize(
    ("checkpoint", "victim"),
    [
        pytest.param(checkpoint, victim, marks=() if (checkpoint, victim) == (2, "group") else pytest.mark.faults)
        for checkpoint in (1, 2)
        for victim in ("runner", "supervisor", "group")
    ],
)
def test_killed_within_a_checkpoint(either: Cluster, checkpoint: int, victim: str) -> None:
    """It is not there, the one before it is, and the next attempt goes on from that."""
    point = f"mid-checkpoint-{checkpoint}"
    either.worker(**STEADY)
    either.gates.hold(point)
    job_id = either.submit()
    strike(either, job_id, point, victim)
    journal = either.settings.artifacts_dir / journal_prefix(job_id)
    assert last_checkpoint(journal) == checkpoint - 1
    either.gates.open(point)
    if victim != "runner":
        either.lease_runs_out(job_id)
        either.worker(**STEADY)
    assert (either.ended(job_id).status, either.job(job_id).attempt) == ("succeeded", 2)
    assert either.gates.resumptions() == [(job_id, 2, 1)] * (checkpoint - 1)
    assert invariants.check(either) == {"succeeded": 1}
