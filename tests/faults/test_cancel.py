"""Cancelling, whenever and however often; draining; jobs that kill whoever runs them."""

from __future__ import annotations

import psutil
import pytest

from elder_core.spec import Stage
from elder_service.storage.base import attempt_prefix
from tests.faults import invariants
from tests.faults.cluster import MAX_ATTEMPTS, STEADY, Cluster
from tests.faults.script import Script
from tests.integration.service import Service, start_api, stop


@pytest.mark.faults
def test_before_the_claim_and_twice(either: Cluster) -> None:
    job_id = either.submit()
    assert either.cancel(job_id) == "cancelled"
    assert either.cancel(job_id) == "cancelled"
    either.worker(**STEADY)
    assert either.ended(either.submit()).status == "succeeded"
    assert either.events(job_id) == ["job.created", "job.cancelled"]
    assert invariants.check(either) == {"cancelled": 1, "succeeded": 1}


def test_at_every_stage_and_twice(production: Cluster) -> None:
    production.worker(**STEADY)
    for stage in Stage:
        production.gates.hold(stage)
        job_id = production.submit(Script())
        production.reached(stage)
        assert production.cancel(job_id) == "cancelling"
        assert production.cancel(job_id) == "cancelling"
        assert production.ended(job_id).status == "cancelled"
        production.gates.open(stage)
        assert production.events(job_id)[-2:] == ["job.cancelling", "job.cancelled"]
    assert invariants.check(production) == {"cancelled": len(Stage)}


@pytest.mark.faults
@pytest.mark.parametrize("point", ["mid-upload", "uploaded"])
def test_around_the_files(production: Cluster, point: str) -> None:
    """What was uploaded of a cancelled job is deleted."""
    production.worker(**STEADY)
    production.gates.hold(point)
    job_id = production.submit()
    production.reached(point)
    uploaded = production.settings.artifacts_dir / attempt_prefix(job_id, 1)
    assert any(uploaded.rglob("*"))
    assert production.cancel(job_id) == "cancelling"
    assert production.ended(job_id).status == "cancelled"
    production.gates.open(point)
    production.until(uploaded.exists, lambda there: not there)
    assert invariants.check(production) == {"cancelled": 1}


@pytest.mark.faults
def test_between_the_claim_and_the_start(production: Cluster) -> None:
    production.worker(**STEADY)
    production.gates.hold("claimed")
    job_id = production.submit(Script(endless_attempts=1))
    production.reached("claimed")
    assert production.cancel(job_id) == "cancelling"
    production.gates.open("claimed")
    assert production.ended(job_id).attempt == 1
    assert invariants.check(production) == {"cancelled": 1}


def test_during_the_last_update(production: Cluster) -> None:
    """The run was over when the request came: it has succeeded, and says so."""
    production.worker(**STEADY)
    production.gates.hold("before-last-update")
    job_id = production.submit()
    production.reached("before-last-update")
    assert production.cancel(job_id) == "cancelling"
    production.gates.open("before-last-update")
    assert production.ended(job_id).status == "succeeded"
    assert production.cancel(job_id) == "succeeded"
    assert invariants.check(production) == {"succeeded": 1}


@pytest.mark.faults
def test_while_every_worker_is_down(either: Cluster) -> None:
    worker = either.worker(**STEADY)
    running = either.submit(Script(endless_attempts=1))
    stage_reached(either, running)
    worker.kill()
    worker.wait()
    queued = either.submit()
    assert (either.cancel(running), either.cancel(queued)) == ("cancelling", "cancelled")
    either.lease_runs_out(running)
    either.worker(**STEADY)
    assert either.ended(running).attempt == 1
    assert invariants.check(either) == {"cancelled": 2}


def test_while_every_worker_stays_down(either: Cluster) -> None:
    """The API ends the cancelled job, and the one that waits too long."""
    worker = either.worker(**STEADY)
    cancelled = either.submit(Script(endless_attempts=1))
    either.until(lambda: either.job(cancelled).stage, lambda stage: stage == "regularizing")
    worker.kill()
    worker.wait()
    late = either.submit(max_queue_seconds=1)
    assert either.cancel(cancelled) == "cancelling"
    either.lease_runs_out(cancelled)
    api = Service(dict(either.environment), either.folder)
    start_api(api, "api")
    assert either.ended(cancelled).status == "cancelled"
    assert either.ended(late).status == "expired"
    assert either.events(cancelled) == ["job.created", "job.started", "job.cancelling", "job.cancelled"]
    stop(api.processes)
    either.worker()  # sweeps what the killed one left
    assert invariants.check(either) == {"cancelled": 1, "expired": 1}


def test_a_process_that_ignores_sigterm(either: Cluster) -> None:
    either.worker(**STEADY)
    job_id = either.submit(Script(endless_attempts=1, deaf=True))
    either.until(lambda: either.job(job_id).stage, lambda stage: stage == "regularizing")
    runner = either.runner_of(job_id)
    assert runner is not None
    either.cancel(job_id)
    assert either.ended(job_id).status == "cancelled"
    assert not runner.is_running()
    assert invariants.check(either) == {"cancelled": 1}


def test_a_job_that_kills_its_process_every_time_stops_at_the_limit(either: Cluster) -> None:
    either.worker(**STEADY)
    poison = either.submit(Script(deadly=True))
    others = [either.submit() for _ in range(3)]
    row = either.ended(poison)
    assert (row.status, row.attempt) == ("failed", MAX_ATTEMPTS)
    assert row.error is not None
    assert (row.error["code"], row.error["details"]["signal"]) == ("runner_died", "SIGKILL")
    assert all(either.ended(job_id).attempt == 1 for job_id in others)
    assert invariants.check(either) == {"failed": 1, "succeeded": 3}


def stage_reached(cluster: Cluster, job_id: str, attempt: int = 1) -> None:
    cluster.until(lambda: cluster.job(job_id), lambda row: row.stage == "regularizing" and row.attempt == attempt)


@pytest.mark.parametrize("whom", [pytest.param("worker", marks=pytest.mark.faults), "everything"])
def test_a_drain_gives_the_job_back_uncounted(either: Cluster, whom: str) -> None:
    """`everything`: systemd and docker tell the job's process and the fork server to stop as well, in any order."""
    job_id = either.submit(Script(endless_attempts=1), max_attempts=1)
    worker = either.worker(**STEADY)
    stage_reached(either, job_id)
    processes = [worker, *worker.children(recursive=True)]
    for process in reversed(processes) if whom == "everything" else [worker]:
        process.terminate()
    assert not psutil.wait_procs(processes, timeout=either.patience_seconds)[1]
    row = either.job(job_id)
    assert (row.status, row.failures) == ("queued", 0), row.error
    either.worker(**STEADY)
    row = either.ended(job_id)
    assert (row.status, row.attempt) == ("succeeded", 2), row.error
    assert invariants.check(either) == {"succeeded": 1}
