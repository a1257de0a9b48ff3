"""A storage that fails, denies, is slow, full, or writes something else; a disk without space."""

from __future__ import annotations

import pytest

from tests.faults import invariants
from tests.faults.cluster import MAX_ATTEMPTS, STEADY, Cluster
from tests.faults.faulty_storage import Fault
from tests.faults.script import Script

FAULT = "ELDER_TEST_STORAGE"
FOR_GOOD = 1000


SHORT = {Fault.WRITES_HALF, Fault.LOSES_THE_ANSWER}


@pytest.mark.parametrize(
    "fault", [pytest.param(one, marks=() if one in SHORT else pytest.mark.faults) for one in Fault]
)
def test_what_goes_wrong_twice_costs_nothing(production: Cluster, fault: Fault) -> None:
    production.worker(**STEADY, **{FAULT: f"{fault}:2"})
    assert production.ended(production.submit()).attempt == 1
    assert invariants.check(production) == {"succeeded": 1}


@pytest.mark.faults
def test_what_goes_wrong_for_good_fails_the_job_with_its_reason(production: Cluster) -> None:
    broken = production.worker(**STEADY, **{FAULT: f"{Fault.FULL}:{FOR_GOOD}"})
    row = production.ended(production.submit(max_attempts=1))
    assert row.status == "failed"
    assert row.error is not None
    assert row.error["code"] == "storage_failed"
    assert "model/config.json: No space left on device" in row.error["message"]
    broken.terminate()
    production.worker()
    assert production.ended(production.submit()).status == "succeeded"
    assert invariants.check(production) == {"failed": 1, "succeeded": 1}


def test_a_full_disk_fails_its_job_and_no_other(either: Cluster) -> None:
    either.worker(**STEADY)
    full, others = either.submit(Script(full_disk=True)), [either.submit() for _ in range(3)]
    row = either.ended(full)
    assert (row.status, row.attempt) == ("failed", MAX_ATTEMPTS)
    assert row.error is not None
    assert row.error["code"] == "disk_full"
    assert "No space left on device" in row.error["message"]
    assert all(either.ended(job_id).attempt == 1 for job_id in others)
    assert invariants.check(either) == {"failed": 1, "succeeded": 3}
