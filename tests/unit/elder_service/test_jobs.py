"""The life of a job, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update

from elder_core.errors import NonFiniteLoss
from elder_core.spec import Progress, Stage
from elder_service.db.engine import SessionFactory, database_now
from elder_service.db.models import JobRow
from elder_service.errors import IdempotencyMismatch, InvalidCursor, JobNotFound, RunnerDied
from elder_service.jobs import attempts, reconcile, repository, service
from elder_service.jobs.attempts import Claim, LeaseLost, Outcome
from elder_service.jobs.repository import JobFilter
from elder_service.jobs.states import TRANSITIONS, Status
from elder_service.storage.base import StoredFile
from tests.unit.elder_service.conftest import submission, submit

LEASE = 60.0
FILE = StoredFile("model/a", "model", "jobs/x/attempt-1/model/a", 3, "f" * 64)
DONE = Outcome(result={"removed_layers": [3]}, files=(FILE,))


def claim(sessions: SessionFactory, lease_seconds: float = LEASE) -> Claim | None:
    with sessions.begin() as session:
        return attempts.claim(session, "worker-1", lease_seconds)


def must_claim(sessions: SessionFactory, lease_seconds: float = LEASE) -> Claim:
    held = claim(sessions, lease_seconds)
    assert held is not None
    return held


def job(sessions: SessionFactory, job_id: str) -> JobRow:
    with sessions.begin() as session:
        return repository.get(session, job_id)


def log(sessions: SessionFactory, job_id: str) -> list[str]:
    with sessions.begin() as session:
        rows = repository.events_after(session, job_id, 0)
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        return [row.type for row in rows]


def reconcile_now(sessions: SessionFactory) -> list[str]:
    with sessions.begin() as session:
        return reconcile.reconcile(session, retry_delay_seconds=0)


def test_a_job_succeeds(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    held = must_claim(sessions)
    with sessions.begin() as session:
        attempts.record_progress(session, held, Progress(stage=Stage.LOADING, step=0, total=1), event=False)
        attempts.record_progress(
            session, held, Progress(stage=Stage.SELECTING, step=1, total=2, metrics={"loss": 1.5}), event=True
        )
    with sessions.begin() as session:
        attempts.succeed(session, held, DONE)
    row = job(sessions, job_id)
    assert row.status == Status.SUCCEEDED
    assert row.result == {"removed_layers": [3]}
    assert row.progress is not None
    assert row.progress["metrics"] == {"loss": 1.5}
    assert [entry["stage"] for entry in row.stage_history] == ["loading", "selecting"]
    assert all(entry["finished_at"] for entry in row.stage_history)
    assert log(sessions, job_id) == [
        "job.created", "job.started", "job.stage", "job.stage", "job.progress", "job.succeeded",
    ]  # fmt: skip
    with sessions.begin() as session:
        assert [file.name for file in repository.artifacts(session, job_id)] == ["model/a"]


def test_nothing_to_claim(sessions: SessionFactory) -> None:
    assert claim(sessions) is None


def test_priority_goes_before_age(sessions: SessionFactory) -> None:
    low, old, new, high = (submit(sessions, priority=priority) for priority in ("low", "normal", "normal", "high"))
    with sessions.begin() as session:
        rows = [repository.get(session, job_id) for job_id in (high, old, new, low)]
        before = repository.queued_before(session, rows)
    assert {job_id: sum(counts.values()) for job_id, counts in before.items()} == {high: 0, old: 1, new: 2, low: 3}
    assert [must_claim(sessions).job_id for _ in range(4)] == [high, old, new, low]


def test_a_job_that_this_version_cannot_read_waits_for_another_worker_and_holds_up_nobody(
    sessions: SessionFactory,
) -> None:
    newer, next_one = submit(sessions, max_attempts=2), submit(sessions)
    with sessions.begin() as session:
        row = repository.get(session, newer)
        row.spec = {**row.spec, "method": {"name": "a method of next year"}}
    assert must_claim(sessions).job_id == next_one
    assert job(sessions, newer).status == Status.QUEUED
    assert claim(sessions) is None, "it would be claimed at once by the worker that cannot read it"
    for _ in range(3):
        with sessions.begin() as session:
            row = repository.get(session, newer)
            assert row.failures == 0, "it is no failure of the job"
            row.available_at = row.created_at
        assert claim(sessions) is None
    with sessions.begin() as session:
        row = repository.get(session, newer)
        assert row.status == Status.QUEUED
        row.available_at = row.created_at = row.created_at - attempts.UNREADABLE_LIFE
    assert claim(sessions) is None
    row = job(sessions, newer)
    assert row.status == Status.FAILED
    assert row.error is not None
    assert row.error["code"] == "unreadable_spec"
    assert "method" in row.error["message"]
    assert log(sessions, newer)[-3:] == ["job.requeued", "job.started", "job.failed"]


def broken_row(sessions: SessionFactory, job_id: str) -> None:
    """Its next event has the number of one that is there."""
    with sessions.begin() as session:
        repository.get(session, job_id).last_event_seq = 0


def test_a_row_that_cannot_be_written_stops_no_other(sessions: SessionFactory) -> None:
    broken, lost, late = submit(sessions), submit(sessions), submit(sessions, max_queue_seconds=0)
    for _ in range(2):
        must_claim(sessions, lease_seconds=-1)
    broken_row(sessions, broken)
    with sessions.begin() as session:
        reconcile.reconcile(session, retry_delay_seconds=0)
    assert [job(sessions, job_id).status for job_id in (broken, lost, late)] == ["running", "queued", "expired"]


def test_a_row_that_cannot_be_claimed_holds_up_no_other(sessions: SessionFactory) -> None:
    broken, next_one = submit(sessions), submit(sessions)
    broken_row(sessions, broken)
    assert must_claim(sessions).job_id == next_one
    assert claim(sessions) is None
    assert job(sessions, broken).status == Status.QUEUED


def test_a_delay_ends_somewhere() -> None:
    assert attempts._delay(5, 1) == timedelta(seconds=5)
    assert attempts._delay(5, 3) == timedelta(seconds=20)
    assert attempts._delay(5, 10_000) == timedelta(hours=1)


def test_claimers_that_race_never_share_a_job(sessions: SessionFactory) -> None:
    ids = {submit(sessions) for _ in range(20)}
    with ThreadPoolExecutor(8) as pool:
        claims = [held.job_id for held in pool.map(lambda _: claim(sessions), range(40)) if held is not None]
    # A claimer may pass over rows that others hold at that moment; none may be given out twice.
    assert len(claims) == len(set(claims))
    while (held := claim(sessions)) is not None:
        claims.append(held.job_id)
    assert sorted(claims) == sorted(ids)


def test_an_attempt_that_lost_its_job_can_write_nothing(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    stale = must_claim(sessions, lease_seconds=-1)
    reconcile_now(sessions)
    current = must_claim(sessions)
    assert (current.job_id, current.attempt) == (job_id, 2)
    progress = Progress(stage=Stage.LOADING, step=0, total=1)
    for write in (
        lambda session: attempts.renew(session, stale, LEASE),
        lambda session: attempts.record_progress(session, stale, progress, event=True),
        lambda session: attempts.succeed(session, stale, DONE),
        lambda session: attempts.fail(session, stale, RunnerDied("x"), 0),
        lambda session: attempts.cancelled(session, stale),
        lambda session: attempts.give_back(session, stale),
        lambda session: attempts.cancel_requested(session, stale),
    ):
        with pytest.raises(LeaseLost), sessions.begin() as session:
            write(session)
    assert job(sessions, job_id).status == Status.RUNNING
    assert log(sessions, job_id) == ["job.created", "job.started", "job.requeued", "job.started"]


def test_a_lost_worker_fails_the_job_at_the_limit(sessions: SessionFactory) -> None:
    job_id = submit(sessions, max_attempts=2)
    for _ in range(2):
        must_claim(sessions, lease_seconds=-1)
        reconcile_now(sessions)
    row = job(sessions, job_id)
    assert row.status == Status.FAILED
    assert row.error is not None
    assert row.error["code"] == "worker_lost"
    assert "worker-1" in row.error["message"]


def test_a_fault_that_may_pass_is_tried_again_after_a_while(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    with sessions.begin() as session:
        held = attempts.claim(session, "worker-1", LEASE)
        assert held is not None
        attempts.fail(session, held, RunnerDied("ended by SIGKILL"), 60, {"signal": "SIGKILL"})
    assert claim(sessions) is None
    row = job(sessions, job_id)
    assert row.status == Status.QUEUED
    assert row.available_at > row.created_at + timedelta(seconds=50)


def test_a_fault_of_the_job_itself_is_not_tried_again(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    held = must_claim(sessions)
    with sessions.begin() as session:
        attempts.record_progress(session, held, Progress(stage=Stage.REGULARIZING, step=3, total=9), event=False)
        attempts.fail(session, held, NonFiniteLoss("The loss is NaN at update 3."), 0)
    row = job(sessions, job_id)
    assert row.status == Status.FAILED
    assert row.error == {
        "code": "non_finite_loss",
        "message": "The loss is NaN at update 3.",
        "stage": "regularizing",
        "retryable": False,
        "details": {},
    }


def test_an_errors_text_need_not_be_fit_for_the_database(sessions: SessionFactory) -> None:
    job_id = submit(sessions, max_attempts=1)
    held = must_claim(sessions)
    with sessions.begin() as session:
        attempts.fail(session, held, RunnerDied("NUL \0, half a pair \udc80"), 0)
    row = job(sessions, job_id)
    assert row.error is not None
    assert row.error["message"] == "NUL \ufffd, half a pair ?"


def test_a_draining_worker_gives_the_job_back_uncounted(sessions: SessionFactory) -> None:
    job_id = submit(sessions, max_attempts=1)
    held = must_claim(sessions)
    with sessions.begin() as session:
        attempts.give_back(session, held)
    assert job(sessions, job_id).failures == 0
    assert must_claim(sessions).attempt == 2


def test_cancel_before_the_claim(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    for _ in range(2):  # the second changes nothing
        with sessions.begin() as session:
            assert service.cancel(session, job_id).status == Status.CANCELLED
    assert claim(sessions) is None
    assert log(sessions, job_id) == ["job.created", "job.cancelled"]


def test_cancel_while_running(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    held = must_claim(sessions)
    with sessions.begin() as session:
        assert not attempts.cancel_requested(session, held)
        assert service.cancel(session, job_id).status == Status.CANCELLING
    with sessions.begin() as session:
        assert attempts.cancel_requested(session, held)
        attempts.cancelled(session, held)
    assert job(sessions, job_id).status == Status.CANCELLED


def test_cancel_of_a_job_whose_worker_is_gone(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    must_claim(sessions, lease_seconds=-1)
    with sessions.begin() as session:
        service.cancel(session, job_id)
    reconcile_now(sessions)
    assert job(sessions, job_id).status == Status.CANCELLED


def test_success_that_came_before_the_cancel_stands(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    held = must_claim(sessions)
    with sessions.begin() as session:
        service.cancel(session, job_id)
        attempts.succeed(session, held, DONE)
    assert job(sessions, job_id).status == Status.SUCCEEDED


def test_a_job_not_started_in_time_expires(sessions: SessionFactory) -> None:
    job_id = submit(sessions, max_queue_seconds=10)
    with sessions.begin() as session:
        session.execute(update(JobRow).values(queue_deadline_at=database_now(session) - timedelta(seconds=1)))
    assert claim(sessions) is None
    reconcile_now(sessions)
    assert job(sessions, job_id).status == Status.EXPIRED
    assert log(sessions, job_id)[-1] == "job.expired"


def test_a_job_without_a_hint_gets_one(sessions: SessionFactory) -> None:
    job_id = submit(sessions)
    assert reconcile_now(sessions) == [job_id]
    assert reconcile_now(sessions) == []


def test_an_idempotency_key_makes_one_job(sessions: SessionFactory) -> None:
    first = submit(sessions, idempotency_key="k")
    assert submit(sessions, idempotency_key="k") == first
    with pytest.raises(IdempotencyMismatch, match="'k'"):
        submit(sessions, idempotency_key="k", priority="high")
    assert submit(sessions, idempotency_key="other") != first


def test_an_idempotency_key_is_its_owners_own(sessions: SessionFactory) -> None:
    mine, theirs = (submit(sessions, idempotency_key="k", owner=owner) for owner in ("anna", "ben"))
    assert mine != theirs
    assert submit(sessions, idempotency_key="k", owner="anna") == mine
    assert submit(sessions, idempotency_key="k", owner="ben") == theirs
    assert submit(sessions, idempotency_key="k", owner="carl", priority="high") not in {mine, theirs}


def test_list_pages_from_newest_to_oldest(sessions: SessionFactory) -> None:
    ids = [submit(sessions, metadata={"n": str(number % 2)}) for number in range(5)][::-1]
    with sessions.begin() as session:
        first, more = repository.list_jobs(session, JobFilter(), after=None, limit=3)
        rest, no_more = repository.list_jobs(session, JobFilter(), after=first[-1].id, limit=3)
        odd, _ = repository.list_jobs(session, JobFilter(metadata={"n": "1"}), after=None, limit=10)
        none, _ = repository.list_jobs(session, JobFilter(statuses=(Status.FAILED,)), after=None, limit=10)
    assert [row.id for row in first + rest] == ids
    assert (more, no_more) == (True, False)
    assert [row.id for row in odd] == [ids[1], ids[3]]
    assert none == []
    with pytest.raises(InvalidCursor, match="nonsense"), sessions.begin() as session:
        repository.list_jobs(session, JobFilter(), after="nonsense", limit=1)


def test_an_unknown_job(sessions: SessionFactory) -> None:
    with pytest.raises(JobNotFound, match="job_0"), sessions.begin() as session:
        repository.get(session, "job_0")


def test_ended_states_have_no_way_out() -> None:
    assert {status for status in Status if status.ended} == {
        Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED,
    }  # fmt: skip
    assert set(TRANSITIONS) == set(Status)


def test_the_same_body_has_the_same_hash() -> None:
    assert submission().body_hash() == submission().body_hash()
    assert submission().body_hash() != submission(metadata={"a": "b"}).body_hash()
