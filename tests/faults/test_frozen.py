"""A worker that stands still past its lease, as in a suspended machine, and then goes on as if nothing had been.

On Postgres alone: a process that stands still within a transaction of SQLite keeps everybody from writing until it goes
on. That is one of the reasons why SQLite is for a single worker.
"""

from __future__ import annotations

from contextlib import suppress

import psutil
import pytest

from tests.faults import invariants
from tests.faults.cluster import STEADY, Cluster


@pytest.mark.parametrize(
    "point",
    ["uploaded", *(pytest.param(point, marks=pytest.mark.faults) for point in ("mid-upload", "before-last-update"))],
)
def test_what_it_writes_late_is_refused(production: Cluster, point: str) -> None:
    """Another worker has finished the job meanwhile."""
    worker = production.worker()
    production.gates.hold(point)
    job_id = production.submit()
    production.reached(point)
    assert production.job(job_id).attempt == 1
    runner = production.runner_of(job_id)  # None where it has ended: before the last update it need not be there
    asleep = [worker, *worker.children(recursive=True)]
    for process in asleep:
        process.suspend()
    production.gates.open(point)
    production.worker(**STEADY)
    assert production.ended(job_id).attempt == 2
    before = production.events(job_id)
    for process in asleep:
        with suppress(psutil.NoSuchProcess):  # the worker, awake, is quick to end the others
            process.resume()
    if point == "before-last-update":
        assert invariants.check(production) == {"succeeded": 1}
    production.until(lambda: runner in production.processes(), lambda there: not there)
    second = production.submit()
    assert production.ended(second).status == "succeeded"
    assert invariants.check(production) == {"succeeded": 2}
    assert production.events(job_id) == before


@pytest.mark.faults
def test_only_its_supervisor_stands_still(production: Cluster) -> None:
    """So that its job's process goes on, and uploads: beside the other attempt's files, where nobody sees them."""
    worker = production.worker()
    production.gates.hold("mid-upload")
    job_id = production.submit()
    production.reached("mid-upload")
    worker.suspend()
    production.worker(**STEADY)
    production.until(lambda: production.job(job_id).attempt, lambda attempt: attempt == 2)
    production.gates.open("mid-upload")
    assert production.ended(job_id).attempt == 2
    worker.resume()
    assert invariants.check(production) == {"succeeded": 1}
