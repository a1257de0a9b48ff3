"""Who may have how many jobs running, which worker can hold a job, and what a waiting one is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from elder_core.errors import OutOfMemory
from elder_core.inspection import Sources
from elder_core.parameters import CutParameters, ElderParameters, Loss, ShortGptParameters, Weights
from elder_core.spec import JobSpec, ModelRef, Progress, Stage, Target
from elder_service.db.engine import SessionFactory, database_now
from elder_service.jobs import attempts, reconcile, repository, workers
from elder_service.jobs.attempts import Claim, Outcome
from elder_service.jobs.hardware import Capacity, Device, Needs, estimated_memory
from elder_service.jobs.outlook import Outlook, outlooks
from elder_service.jobs.states import Status
from tests.unit.elder_service.conftest import submit

SMALL = Capacity(Device.CPU, 8 * 10**9)
LARGE = Capacity(Device.CUDA, 80 * 10**9, "H100")
UNKNOWN = Capacity(Device.CUDA)


def claim(sessions: SessionFactory, capacity: Capacity | None = None, limit: int | None = None) -> str | None:
    with sessions.begin() as session:
        held = attempts.claim(session, "worker-1", 60, capacity, limit)
        return held.job_id if held else None


def outlook(sessions: SessionFactory, job_id: str, limit: int | None = None) -> Outlook | None:
    with sessions.begin() as session:
        return outlooks(session, [repository.get(session, job_id)], database_now(session), limit).get(job_id)


def register(sessions: SessionFactory, *capacities: Capacity) -> None:
    with sessions.begin() as session:
        for number, capacity in enumerate(capacities):
            workers.register(session, f"worker-{number}", capacity, 60)


@pytest.mark.parametrize(
    ("needs", "small", "large", "unknown"),
    [
        (Needs(), True, True, True),
        (Needs(Device.CPU), True, False, False),
        (Needs(Device.CUDA), False, True, True),
        (Needs(None, 8 * 10**9), True, True, True),
        (Needs(None, 8 * 10**9 + 1), False, True, True),
        (Needs(Device.CUDA, 81 * 10**9), False, False, True),
    ],
)
def test_a_job_goes_to_a_worker_that_can_hold_it(
    sessions: SessionFactory, needs: Needs, *, small: bool, large: bool, unknown: bool
) -> None:
    """The same by the query that claims and by the rule that explains."""
    for capacity, holds in ((SMALL, small), (LARGE, large), (UNKNOWN, unknown)):
        assert needs.held_by(capacity) is holds
        job_id = submit(sessions, needs=needs)
        assert claim(sessions, capacity) == (job_id if holds else None)
        if not holds:
            assert claim(sessions) == job_id


def test_a_job_that_a_worker_cannot_hold_does_not_hold_up_others(sessions: SessionFactory) -> None:
    submit(sessions, needs=Needs(Device.CUDA), priority="high")
    small = submit(sessions)
    assert claim(sessions, SMALL) == small


def test_no_owner_keeps_others_waiting(sessions: SessionFactory) -> None:
    first = [submit(sessions, owner="anna") for _ in range(3)]
    second = submit(sessions, owner="ben")
    assert claim(sessions, limit=2) == first[0]
    assert claim(sessions, limit=2) == first[1]
    assert claim(sessions, limit=2) == second
    assert claim(sessions, limit=2) is None
    register(sessions, SMALL)
    seen = outlook(sessions, first[2], limit=2)
    assert seen is not None
    assert seen.waiting_for == "anna has 2 jobs running, as many as one owner may."
    with sessions.begin() as session:
        attempts.succeed(session, held(session, first[0]), Outcome({}))
    assert claim(sessions, limit=2) == first[2]


def held(session: object, job_id: str) -> Claim:
    row = repository.get(session, job_id)  # type: ignore[arg-type]
    return Claim(row.id, row.attempt, JobSpec.model_validate(row.spec), None)


def test_claimers_that_race_keep_to_the_limit(sessions: SessionFactory) -> None:
    for _ in range(12):
        submit(sessions, owner="anna")
    with ThreadPoolExecutor(8) as pool:
        claims = [found for found in pool.map(lambda _: claim(sessions, limit=3), range(24)) if found]
    assert len(claims) == 3


def test_a_waiting_job_says_that_there_is_no_worker_for_it(sessions: SessionFactory) -> None:
    job_id = submit(sessions, needs=Needs(Device.CUDA, 100 * 10**9))
    assert outlook(sessions, job_id) == Outlook(None, None, "No worker is running.")
    register(sessions, SMALL)
    assert outlook(sessions, job_id) == Outlook(
        None,
        None,
        "It needs a worker with a GPU and 100 GB of memory; none is of that kind. It starts when such a worker is "
        "there.",
    )
    register(sessions, SMALL, LARGE)
    seen = outlook(sessions, job_id)
    assert seen is not None
    assert "the largest has 80 GB" in str(seen.waiting_for)
    register(sessions, SMALL, LARGE, UNKNOWN)
    assert outlook(sessions, job_id) == Outlook(1, None, None)


def test_a_start_is_estimated_from_how_long_jobs_took(sessions: SessionFactory) -> None:
    done, running, *queued = [submit(sessions) for _ in range(5)]
    register(sessions, SMALL, LARGE)
    assert claim(sessions) == done
    assert outlook(sessions, queued[0]) == Outlook(2), "no job has ever ended: nothing is known"
    succeed_after(sessions, done, seconds=100)
    assert claim(sessions) == running
    # one worker is free at once, the other after the running job, then the first again
    assert waits(sessions, running, queued) == {1: 0, 2: 100, 3: 100}


def succeed_after(sessions: SessionFactory, job_id: str, seconds: float) -> None:
    with sessions.begin() as session:
        attempts.succeed(session, held(session, job_id), Outcome({}))
        row = repository.get(session, job_id)
        assert row.finished_at is not None
        row.started_at = row.finished_at - timedelta(seconds=seconds)


def waits(sessions: SessionFactory, running: str, queued: list[str]) -> dict[int | None, float | None]:
    """Position and seconds until the start of each, at the moment when `running` was started."""
    with sessions.begin() as session:
        now = repository.get(session, running).started_at
        assert now is not None
        found = outlooks(session, [repository.get(session, job_id) for job_id in queued], now, None)
    return {
        seen.position: (seen.starts_at - now).total_seconds() if seen.starts_at else None
        for seen in (found[job_id] for job_id in queued)
    }


def test_only_workers_that_can_hold_a_job_and_jobs_that_want_them_count(sessions: SessionFactory) -> None:
    """A queue for the one small worker, which is busy, does not delay what the large one alone can hold."""
    done, running = submit(sessions), submit(sessions)
    small = [submit(sessions, needs=Needs(Device.CPU)) for _ in range(3)]
    large = [submit(sessions, needs=Needs(Device.CUDA, 50 * 10**9)) for _ in range(2)]
    anywhere = submit(sessions)
    nowhere = submit(sessions, needs=Needs(None, 81 * 10**9))
    register(sessions, LARGE, SMALL)  # worker-0 and worker-1, who claims
    assert claim(sessions) == done
    succeed_after(sessions, done, seconds=100)
    assert claim(sessions) == running
    assert waits(sessions, running, small) == {1: 100, 2: 200, 3: 300}
    assert waits(sessions, running, large) == {1: 0, 2: 100}
    assert waits(sessions, running, [anywhere]) == {6: 300}  # after five, on two workers
    assert waits(sessions, running, [nowhere]) == {None: None}


def test_a_worker_that_is_gone_starts_nothing(sessions: SessionFactory) -> None:
    done, running, queued = (submit(sessions) for _ in range(3))
    assert claim(sessions) == done
    succeed_after(sessions, done, seconds=100)
    assert claim(sessions) == running
    register(sessions, SMALL, SMALL)
    assert waits(sessions, running, [queued]) == {1: 0}
    with sessions.begin() as session:
        workers.register(session, "worker-0", SMALL, -1)
    assert waits(sessions, running, [queued]) == {1: 100}


def test_a_worker_that_falls_silent_is_not_there(sessions: SessionFactory) -> None:
    with sessions.begin() as session:
        workers.register(session, "gone", SMALL, -1)
        workers.register(session, "there", LARGE, 60)
        assert [row.id for row in workers.present(session)] == ["there"]
    with sessions.begin() as session:
        reconcile.reconcile(session, 0)
    with sessions.begin() as session:
        workers.register(session, "there", SMALL, 60)
        assert [workers.capacity_of(row) for row in workers.present(session)] == [SMALL]
        workers.leave(session, "there")
        assert not workers.present(session)


def test_the_least_memory_is_that_of_the_weights_and_their_training() -> None:
    sources = Sources(model_roots=(), text_roots=())
    model = ModelRef(id="builtin:manuals-16l")
    trained = JobSpec(model=model, ratio=0.25)
    cut = JobSpec(model=model, layers=(3,), method=CutParameters())
    least = estimated_memory(cut, sources)
    assert least is not None
    assert 10**6 < least < 16e6
    numbers = 7_280_832  # in bfloat16
    assert least == pytest.approx(2 * numbers, rel=0.01)

    def of(**update: object) -> int | None:
        return estimated_memory(trained.model_copy(update=update), sources)

    assert of() == numbers * (16 * 3 // 4 + 2)  # weights, gradients and two moments of what stays, and a teacher
    assert of(ratio=None, layers=(1, 2)) == numbers * (16 * 7 // 8 + 2)
    assert of(ratio=None, target=Target(max_perplexity_increase=0.1)) == numbers * (1 + 2)  # whatever is left
    assert of(ratio=None, target=Target(max_bytes=5_000_000)) == of(ratio=None, layers_to_remove=12)
    taught_by_text = ShortGptParameters(updates=1, loss=Loss.CROSS_ENTROPY)
    assert of(method=taught_by_text) == numbers * (16 * 3 // 4 + 2 * 0.25)
    assert of(method=ElderParameters(weights=Weights.LORA)) == of(method=ElderParameters(tokens=0)) == least
    assert estimated_memory(JobSpec(model=ModelRef(id="owner/on-the-hub"), ratio=0.25), sources) is None


def test_out_of_memory_is_tried_again_but_not_twice_at_the_same_place(sessions: SessionFactory) -> None:
    def runs_out(stage: Stage) -> Status:
        with sessions.begin() as session:
            mine = attempts.claim(session, "worker-1", 60)
            assert mine is not None
            attempts.record_progress(session, mine, Progress(stage=stage, step=0, total=1), event=False)
            attempts.fail(session, mine, OutOfMemory("The device has too little memory."), 0)
            return Status(repository.get(session, mine.job_id).status)

    submit(sessions, max_attempts=9)
    assert runs_out(Stage.SELECTING) == Status.QUEUED
    assert runs_out(Stage.REGULARIZING) == Status.QUEUED
    assert runs_out(Stage.SELECTING) == Status.QUEUED
    assert runs_out(Stage.SELECTING) == Status.FAILED


def test_a_job_that_was_started_in_time_does_not_expire_when_its_attempt_is_lost(sessions: SessionFactory) -> None:
    job_id = submit(sessions, max_queue_seconds=1)
    with sessions.begin() as session:
        mine = attempts.claim(session, "worker-1", 60)
        assert mine is not None
        attempts.give_back(session, mine)
        now = repository.get(session, job_id).created_at + timedelta(hours=1)
        assert repository.past_queue_deadline(session, now) == []
    assert claim(sessions) == job_id
