"""Claims jobs and watches over the process of each. Torch-free: it must go on when a job's process cannot."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from elder_service.backoff import backoff_seconds
from elder_service.db.engine import SessionFactory, is_passing
from elder_service.jobs import attempts, repository, workers
from elder_service.jobs.attempts import Claim, LeaseLost
from elder_service.jobs.hardware import Capacity, Device
from elder_service.settings import Settings
from elder_service.storage.base import Storage, attempt_prefix, journal_prefix
from worker import scratch
from worker.attempt import Attempt
from worker.child import Assignment, Child
from worker.forkserver import ForkServer
from worker.pulse import Pulse

MOST_REST_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs one job at a time. `run_available` may be called from any thread, on a hint or by a timer."""

    def __init__(
        self,
        settings: Settings,
        sessions: SessionFactory,
        storage: Storage,
        fork_server: ForkServer,
        pulse: Pulse,
        capacity: Capacity,
    ) -> None:
        # A container's process has the same name and number each time it starts; an owner must be nobody before it.
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._answer_lost = False
        self._settings = settings
        self._sessions = sessions
        self._storage = storage
        self._slot = threading.Lock()
        self._told = threading.Event()
        self._draining = threading.Event()
        self._ready = threading.Event()
        self._fork_server = fork_server
        self._warm = False
        self._suspicions = 0
        self._resting_until = 0.0  # of the monotonic clock
        self._pulse = pulse
        self._capacity = capacity

    def run_available(self) -> int:
        """Run jobs until there are none left; returns how many. While another thread is at it, that one looks again.

        Otherwise a hint would be lost that comes just after the last look and before the slot is free.
        """
        if not self._ready.is_set():
            return 0
        count = 0
        self._told.set()
        while self._told.is_set() and self._slot.acquire(blocking=False):
            try:
                self._told.clear()
                while not self._draining.is_set() and self._run_next():
                    count += 1
            finally:
                self._slot.release()
        return count

    def warm_up(self) -> None:
        """Load torch before a claim: a lease must not run out while a process waits to be started.

        Where that fails nothing is claimed, and the next look for a job tries again: jobs wait for a worker that can.
        """
        try:
            self._fork_server.warm_up()
            self._warm = True
        except (EOFError, OSError):
            _log.exception("could not load torch; no job is claimed meanwhile")
        self._ready.set()

    def register(self) -> None:
        """Tell that this worker is there, and what it has."""
        if not self._draining.is_set():
            with self._sessions.begin() as session:
                workers.register(session, self.owner, self._capacity, self._settings.lease_seconds)

    def leave(self) -> None:
        """Tell that it is gone, and give back what it may hold unknowingly; if that fails it is known after a lease."""
        with suppress(SQLAlchemyError), self._sessions.begin() as session:
            if self._answer_lost:
                attempts.give_back_unknown(session, self.owner)
            workers.leave(session, self.owner)

    def drain(self) -> None:
        """Claim nothing more and give the running job back."""
        self._draining.set()

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Whether the running attempt has ended within the time."""
        idle = self._slot.acquire(timeout=timeout_seconds)
        if idle:
            self._slot.release()
        return idle

    def _run_next(self) -> bool:
        if time.monotonic() < self._resting_until:
            return False
        if not self._warm:
            self.warm_up()
        # It may be told to stop meanwhile, and be gone before it could give a job back.
        if not self._warm or self._draining.is_set():
            return False
        before = time.monotonic()
        try:
            held = self._claim()
        except SQLAlchemyError as error:
            if not is_passing(error):
                raise
            self._answer_lost = True
            _log.warning("Could not look for a job: %s", error)
            return False
        self._pulse.beat()
        if held is None:
            return False
        _log.info("%s attempt %d: claimed", held.job_id, held.attempt)
        self._run(held, before)
        return True

    def _claim(self) -> Claim | None:
        with self._sessions.begin() as session:
            if self._answer_lost:  # the claim may have been committed, and nobody runs it
                attempts.give_back_unknown(session, self.owner)
        self._answer_lost = False
        with self._sessions.begin() as session:
            return attempts.claim(
                session,
                self.owner,
                self._settings.lease_seconds,
                self._capacity,
                self._settings.max_running_per_owner,
            )

    def _run(self, held: Claim, claimed_at: float) -> None:
        assignment = self._assignment(held)
        attempt = Attempt(self._settings, self._sessions, held, self._draining, self._pulse, claimed_at)
        self._warm = False  # unless it succeeds: it may take the fork server with it
        try:
            self._warm = attempt.run(lambda: self._child(assignment))
            if not self._warm:
                self._storage.delete_prefix(attempt_prefix(held.job_id, held.attempt))
            self._forget_journal(held.job_id)
        except LeaseLost:  # maintenance sweeps its files, once it is sure that they are nobody's
            _log.warning("%s attempt %d: lost the lease, stopped", held.job_id, held.attempt)
        finally:
            scratch.clear(assignment.scratch)
        self._rest_if_suspect(attempt.suspect)

    def _rest_if_suspect(self, suspect: bool) -> None:
        """After attempts in a row that failed by no fault of their jobs, longer each time: a worker whose disk is full
        would take the whole queue through all its attempts within a minute."""
        self._suspicions = self._suspicions + 1 if suspect else 0
        if self._suspicions > 1:
            rest = backoff_seconds(self._settings.claim_seconds, self._suspicions - 1, MOST_REST_SECONDS)
            self._resting_until = time.monotonic() + rest
            _log.error("%d attempts in a row failed here; no claim for %g s", self._suspicions, rest)

    def _forget_journal(self, job_id: str) -> None:
        """Delete it if the job has ended; where that cannot be asked now, maintenance will."""
        try:
            with self._sessions.begin() as session:
                found = repository.standing(session, [job_id]).get(job_id)
        except SQLAlchemyError as error:
            _log.warning("%s: its journal stays for now: %s", job_id, error)
            return
        if found is not None and found.status.ended:
            self._storage.delete_prefix(journal_prefix(job_id))

    def _child(self, assignment: Assignment) -> Child:
        self._fork_server.start()
        return Child(self._fork_server.context, assignment)

    def _assignment(self, held: Claim) -> Assignment:
        return Assignment(
            job_id=held.job_id,
            attempt=held.attempt,
            spec=held.spec,
            sources=self._settings.sources,
            device=Device.CUDA if self._capacity.gpu else self._settings.device,  # its own, the only one it sees
            scratch=self._settings.scratch_dir / attempt_prefix(held.job_id, held.attempt),
            artifacts_dir=self._settings.artifacts_dir,
            journal_seconds=self._settings.journal_seconds,
        )
