"""One attempt of one job: watch its process, renew its lease, write down how it ended."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from elder_core.errors import ElderError
from elder_core.spec import Progress, Stage
from elder_service.db.engine import SessionFactory, is_passing
from elder_service.errors import InternalError, ResultNotFinite, RunnerDied, RuntimeExceeded, StartFailed
from elder_service.jobs import attempts
from elder_service.jobs.attempts import Claim, LeaseLost, Outcome
from elder_service.settings import Settings
from worker.child import Child, Failure, Stopped
from worker.lease import LeaseWatch
from worker.pulse import Pulse

POLL_SECONDS = 0.1
PROGRESS_SECONDS = 1.0
EVENT_SECONDS = 2.0
EVENT_SHARE = 1 / 200  # of the time so far: events get rarer, so that a long job's log stays readable
RETRY_SECONDS = 0.5
DRAIN_SHARE = 0.7  # of the worker's time to stop: the process writes its journal, the rest is for the database
DRAIN_NOTICE_SECONDS = 10.0  # between the SIGTERM that reaches a job's process and the one that reaches its worker

_log = logging.getLogger(__name__)


@dataclass
class Timer:
    """Due once every `seconds` of the monotonic clock, counted from its making."""

    seconds: float
    _last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        if self.elapsed() < self.seconds:
            return False
        self._last = time.monotonic()
        return True

    def again_in(self, seconds: float) -> None:
        self._last = time.monotonic() + seconds - self.seconds

    def elapsed(self) -> float:
        return time.monotonic() - self._last


class Attempt:
    """Owns the claim until `run` returns or raises LeaseLost; either way the process is gone by then."""

    def __init__(
        self,
        settings: Settings,
        sessions: SessionFactory,
        held: Claim,
        draining: threading.Event,
        pulse: Pulse,
        claimed_at: float,
    ) -> None:
        """`claimed_at`: the monotonic clock in seconds before the claim was sent."""
        self._settings = settings
        self._sessions = sessions
        self._held = held
        self._draining = draining
        self._pulse = pulse
        self._started = time.monotonic()
        self._lease = LeaseWatch(settings.lease_seconds, claimed_at)
        self._heartbeat = Timer(settings.heartbeat_seconds)
        self._cancel_poll = Timer(settings.cancel_poll_seconds)
        self._progress_write = Timer(PROGRESS_SECONDS)
        self._event_write = Timer(EVENT_SECONDS)
        self._latest: Progress | None = None
        self._stage: Stage | None = None
        self.suspect = False
        """Whether it failed by what may be the worker's own fault: another attempt may do better, on another one."""

    def run(self, start: Callable[[], Child]) -> bool:
        """Start the job's process and watch it to its end. True if the job succeeded, its files being visible now.

        Raises:
            LeaseLost: another attempt, or nobody, holds the job.
        """
        try:
            if self._draining.is_set():  # since the claim was sent
                self._finally(attempts.give_back)
                return False
            child = self._start(start)
            return self._guarded(child) if child else False
        except LeaseLost:
            raise
        except Exception as error:  # whatever it was: unwritten, the row stays running until its lease ends
            _log.exception("%s attempt %d: a fault of the worker", self._held.job_id, self._held.attempt)
            return self._failed(InternalError(f"A fault of the worker: {_brief(error)}"))

    def _start(self, start: Callable[[], Child]) -> Child | None:
        try:
            return start()
        except Exception as error:  # a full disk, no memory, no more threads, or the fork server is gone
            _log.exception("%s attempt %d: no process", self._held.job_id, self._held.attempt)
            self._failed(StartFailed(f"The job's process could not be started: {_brief(error)}"))
            return None

    def _guarded(self, child: Child) -> bool:
        try:
            with self._lease.watch(lost=child.end):
                return self._watch(child)
        finally:
            child.kill()

    def _watch(self, child: Child) -> bool:
        while True:
            try:
                message = child.heard(POLL_SECONDS)
            except (EOFError, OSError):
                return self._died(child)
            if isinstance(message, Progress):
                self._latest = message
            elif message is not None:
                return self._ended(message)
            self._write_progress()
            self._keep_lease()
            if self._draining.is_set():
                return self._drain(child)
            if self._cancel_poll.due() and self._try(attempts.cancel_requested) is True:
                return self._cancel(child)
            if self._overdue():
                return self._time_out(child)

    def _write_progress(self) -> None:
        """At once on a new stage, otherwise now and then; only the latest step matters."""
        progress = self._latest
        if progress is None:
            return
        new_stage = progress.stage != self._stage
        if not (self._progress_write.due() or new_stage):
            return
        self._event_write.seconds = max(EVENT_SECONDS, (time.monotonic() - self._started) * EVENT_SHARE)
        event = self._event_write.due()

        def write(session: Session, held: Claim) -> bool:
            attempts.record_progress(session, held, progress, event=event)
            return True

        if self._try(write):
            self._latest, self._stage = None, progress.stage

    def _keep_lease(self) -> None:
        """Renew in time; stop before the lease ends if the database cannot be reached."""

        def renew(session: Session, held: Claim) -> bool:
            attempts.renew(session, held, self._settings.lease_seconds)
            return True

        now = time.monotonic()
        if self._heartbeat.due():
            if self._try(renew):
                self._lease.extend(now)
            else:  # a database that is back for a moment must find this worker asking
                self._heartbeat.again_in(RETRY_SECONDS)
        self._check_lease()

    def _check_lease(self) -> None:
        if self._lease.over():
            raise LeaseLost

    def _overdue(self) -> bool:
        limit = self._held.max_runtime_seconds
        return limit is not None and time.monotonic() - self._started > limit

    # Endings -----------------------------------------------------------------------------------------------------

    def _ended(self, message: Outcome | Failure | Stopped) -> bool:
        if isinstance(message, Outcome):
            outcome = message
            if strange := _not_finite(outcome.result):
                return self._failed(strange)
            self._finally(lambda session, held: attempts.succeed(session, held, outcome))
            return True
        if isinstance(message, Failure):
            return self._failed(message.error)
        if isinstance(message, Stopped):
            return self._stopped()
        assert_never(message)

    def _stopped(self) -> bool:
        """Nobody here asked for it. Who stops a whole service (systemd, docker) sends SIGTERM to the job's process too,
        and it may be the first to hear it."""
        notice = Timer(DRAIN_NOTICE_SECONDS)
        while not notice.due():
            if self._draining.wait(POLL_SECONDS):
                self._finally(attempts.give_back)
                return False
            self._keep_lease()
        return self._failed(RunnerDied("The job's process was told to stop from outside, and its worker was not."))

    def _died(self, child: Child) -> bool:
        self._check_lease()  # then it was this worker that ended it
        error, details = child.death()
        _log.error("%s attempt %d: %s", self._held.job_id, self._held.attempt, error.message)
        return self._failed(error, details)

    def _cancel(self, child: Child) -> bool:
        child.stop(self._settings.cancel_grace_seconds, self._keep_lease)
        self._finally(attempts.cancelled)
        return False

    def _drain(self, child: Child) -> bool:
        outcome = child.stop(DRAIN_SHARE * self._settings.drain_seconds, self._keep_lease, keep=True)
        if outcome is not None:  # the run was over: hours of work, not to be done again
            return self._ended(outcome)
        self._finally(attempts.give_back)
        return False

    def _time_out(self, child: Child) -> bool:
        outcome = child.stop(self._settings.cancel_grace_seconds, self._keep_lease)
        if outcome is not None:
            return self._ended(outcome)
        return self._failed(
            RuntimeExceeded(
                f"The attempt ran longer than max_runtime_seconds ({self._held.max_runtime_seconds}); "
                "allow more time or a smaller budget."
            )
        )

    def _failed(self, error: ElderError, details: dict[str, object] | None = None) -> bool:
        if error.retryable and self._draining.is_set():  # what stops the worker may well have caused it
            self._finally(attempts.give_back)
            return False
        self.suspect = error.retryable
        self._finally(
            lambda session, held: attempts.fail(session, held, error, self._settings.retry_delay_seconds, details)
        )
        return False

    # Writing -----------------------------------------------------------------------------------------------------

    def _try(self, write: Callable[[Session, Claim], bool]) -> bool | None:
        """One transaction; None if the database is away, after which the next round tries again.

        Raises:
            SQLAlchemyError: the database refuses this write, and will the next time.
        """
        try:
            with self._sessions.begin() as session:
                answer = write(session, self._held)
        except SQLAlchemyError as error:
            if not is_passing(error):
                raise
            _log.warning("%s attempt %d: database: %s", self._held.job_id, self._held.attempt, error)
            return None
        self._pulse.beat()
        return answer

    def _finally(self, write: Callable[[Session, Claim], None]) -> None:
        """The last write: tried until the database takes it, or the lease is over."""

        def written(session: Session, held: Claim) -> bool:
            write(session, held)
            return True

        while not self._try(written):
            self._keep_lease()
            time.sleep(RETRY_SECONDS)
        _log.info("%s attempt %d: ended", self._held.job_id, self._held.attempt)


def _brief(error: Exception) -> str:
    """Its first line: the database's errors go on with the whole statement."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _not_finite(result: dict[str, object]) -> ResultNotFinite | None:
    """The error of a result that JSON, and so the database, has no word for."""
    wrong = {name: value for name, value in result.items() if isinstance(value, float) and not math.isfinite(value)}
    if not wrong:
        return None
    named = ", ".join(f"{name} is {value}" for name, value in wrong.items())
    return ResultNotFinite(
        f"The run ended, but {named}: the model predicts no numbers. Remove fewer layers, or train more."
    )
