"""Who gets a job: claimers that race, hints by the hundred, clocks that are wrong."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from elder_service.db.engine import SessionFactory, make_engine, make_sessions
from elder_service.db.models import JobRow
from elder_service.jobs import attempts, service
from elder_service.jobs.states import Status
from tests.faults import invariants, records
from tests.faults.cluster import STEADY, Cluster
from tests.faults.script import Script
from tests.unit.elder_service.conftest import database_url, sessions, submission

__all__ = ["database_url", "sessions"]

CLAIMERS, JOBS = 20, 500


def test_twenty_claimers_and_five_hundred_jobs(database_url: str, sessions: SessionFactory) -> None:
    """Each has connections of its own, as workers do; every job is given out once, in its first attempt."""
    with sessions.begin() as session:
        for _ in range(JOBS):
            service.submit(session, submission())

    def claim_until_none_is_left(number: int) -> list[tuple[str, int]]:
        engine = make_engine(database_url)
        own, found, misses = make_sessions(engine), [], 0
        while misses < 3:  # one may pass over rows that others hold at that moment
            with own.begin() as session:
                held = attempts.claim(session, f"worker-{number}", 60)
            misses = 0 if held else misses + 1
            found += [(held.job_id, held.attempt)] if held else []
        engine.dispose()
        return found

    with ThreadPoolExecutor(CLAIMERS) as pool:
        claims = Counter(claim for found in pool.map(claim_until_none_is_left, range(CLAIMERS)) for claim in found)
    assert len(claims) == JOBS
    assert set(claims.values()) == {1}
    assert {attempt for _, attempt in claims} == {1}
    records.note(accepted=JOBS, lost=JOBS - len(claims))


def test_a_hundred_hints_for_three_jobs(either: Cluster) -> None:
    """Before, between and after them, to workers that look by themselves only once a minute."""
    either.workers_started(2, **STEADY, ELDER_CLAIM_SECONDS="60", ELDER_MAINTENANCE_SECONDS="60")
    for _ in range(30):
        either.hint()
    jobs = [either.submit() for _ in range(3)]
    for _ in range(70):
        either.hint()
    for job_id in jobs:
        assert either.ended(job_id).attempt == 1
    assert invariants.check(either) == {"succeeded": 3}


@pytest.mark.faults
@pytest.mark.parametrize("hours", ["-1h", "+1h"])
def test_a_worker_whose_clock_is_an_hour_off(production: Cluster, hours: str) -> None:
    """It neither loses its own lease nor takes another's job; the lease is by the database's clock."""
    production.worker()
    production.worker(**wrong_clock(hours))
    held = [production.submit(Script(endless_attempts=1)) for _ in range(2)]
    for job_id in held:
        production.until(lambda job_id=job_id: production.job(job_id), in_training)
    first = [production.job(job_id).lease_expires_at for job_id in held]
    lease = float(production.environment["ELDER_LEASE_SECONDS"])
    production.until(
        lambda: [production.job(job_id).lease_expires_at for job_id in held],
        lambda ends: all((end - begin).total_seconds() > 1.5 * lease for end, begin in zip(ends, first, strict=True)),
    )
    assert [production.job(job_id).attempt for job_id in held] == [1, 1]
    for job_id in held:
        production.cancel(job_id)
    assert invariants.check(production) == {"cancelled": 2}


def in_training(row: JobRow) -> bool:
    assert not Status(row.status).ended, row.error
    return row.stage == "regularizing"


def wrong_clock(offset: str) -> dict[str, str]:
    """An environment in which the wall clock is off, and the monotonic one is not."""
    libraries = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    assert libraries, "No libfaketime found: run `make setup`."
    return {"LD_PRELOAD": str(libraries[0]), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
