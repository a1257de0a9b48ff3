"""Claims jobs and watches over the process of each. Torch-free: it must go on when a job's process cannot."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading

from sqlalchemy.exc import SQLAlchemyError

from elder_service.db.engine import SessionFactory
from elder_service.jobs import attempts
from elder_service.jobs.attempts import Claim, LeaseLost
from elder_service.settings import Settings
from elder_service.storage.base import Storage, attempt_prefix
from worker.attempt import Attempt
from worker.child import Assignment, Child, make_context, warm_up

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs one job at a time. `run_available` may be called from any thread, on a hint or by a timer."""

    def __init__(self, settings: Settings, sessions: SessionFactory, storage: Storage) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._sessions = sessions
        self._storage = storage
        self._slot = threading.Lock()
        self._draining = threading.Event()
        self._context = make_context()

    def run_available(self) -> int:
        """Run jobs until there are none left; returns how many. Does nothing while another thread is at it."""
        if not self._slot.acquire(blocking=False):
            return 0
        try:
            count = 0
            while not self._draining.is_set() and self._run_next():
                count += 1
            return count
        finally:
            self._slot.release()

    def warm_up(self) -> None:
        """Load torch before the first claim: a lease must not run out while a process waits to be started."""
        with self._slot:
            warm_up(self._context)

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
        try:
            with self._sessions.begin() as session:
                held = attempts.claim(session, self.owner, self._settings.lease_seconds)
        except SQLAlchemyError as error:
            _log.warning("Could not look for a job: %s", error)
            return False
        if held is None:
            return False
        _log.info("%s attempt %d: claimed", held.job_id, held.attempt)
        self._run(held)
        return True

    def _run(self, held: Claim) -> None:
        assignment = self._assignment(held)
        try:
            succeeded = Attempt(self._settings, self._sessions, held, self._draining).run(
                Child(self._context, assignment)
            )
            if not succeeded:
                self._storage.delete_prefix(attempt_prefix(held.job_id, held.attempt))
        except LeaseLost:  # maintenance sweeps its files, once it is sure that they are nobody's
            _log.warning("%s attempt %d: lost the lease, stopped", held.job_id, held.attempt)
        finally:
            shutil.rmtree(assignment.scratch, ignore_errors=True)

    def _assignment(self, held: Claim) -> Assignment:
        return Assignment(
            job_id=held.job_id,
            attempt=held.attempt,
            spec=held.spec,
            sources=self._settings.sources,
            device=self._settings.device,
            scratch=self._settings.scratch_dir / attempt_prefix(held.job_id, held.attempt),
            artifacts_dir=self._settings.artifacts_dir,
        )
