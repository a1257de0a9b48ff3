"""What every worker does beside its job: look for lost jobs, send lost hints, sweep what nobody owns."""

from __future__ import annotations

import logging

from celery import Celery
from sqlalchemy.orm import Session

from elder_core.cache_folder import remove_unused
from elder_service import queue
from elder_service.db.engine import SessionFactory
from elder_service.jobs import reconcile, repository
from elder_service.settings import Settings
from elder_service.storage.base import Storage, attempt_of, journal_of
from elder_service.storage.local import folders_in
from worker import scratch

_log = logging.getLogger(__name__)


class Maintenance:
    def __init__(self, settings: Settings, sessions: SessionFactory, storage: Storage, celery: Celery) -> None:
        self._settings = settings
        self._sessions = sessions
        self._storage = storage
        self._celery = celery

    def reconcile(self) -> None:
        """Requeue or end what was lost, then send one hint if jobs wait without.

        One is enough, since the worker that takes it runs jobs until there are none; a hint for each job would pile
        up in the broker while a long one runs.
        """
        with self._sessions.begin() as session:
            waiting = reconcile.reconcile(session, self._settings.retry_delay_seconds)
        if waiting:
            queue.send_hint(self._celery)

    def sweep(self) -> None:
        """Delete what nobody needs: files of attempts that ended without making them visible, journals of jobs that are
        over, tokens that no job used for 30 days.

        Nothing of a job that the database does not know: a worker that was started with another database, or with a
        restored one, would delete every result there is.
        """
        self._sweep_storage()
        self._sweep_scratch()
        remove_unused(self._settings.token_cache_dir)

    def _sweep_storage(self) -> None:
        for job_prefix in self._storage.list_prefixes("jobs"):
            for prefix in self._storage.list_prefixes(job_prefix):
                if self._orphaned(prefix) or self._done_with(prefix):
                    _log.info("sweeping %s", prefix)
                    self._storage.delete_prefix(prefix)

    def _sweep_scratch(self) -> None:
        root = self._settings.scratch_dir
        for job_folder in folders_in(root / "jobs"):
            for folder in folders_in(job_folder):
                if self._given_up(str(folder.relative_to(root))):
                    scratch.clear(folder)
            scratch.remove_if_empty(job_folder)

    def _orphaned(self, prefix: str) -> bool:
        """The order matters: asked the other way round, an attempt that succeeds in between loses its files.

        PostgreSQL gives each statement the rows of its own moment. An attempt that no longer holds its job has
        committed all that it ever will, so the second statement sees whatever it made visible.
        """
        owner = attempt_of(prefix)
        if owner is None:
            return False  # nobody here wrote it
        with self._sessions.begin() as session:
            return _is_given_up(session, *owner) and not repository.has_artifacts_below(session, owner[0], prefix)

    def _done_with(self, prefix: str) -> bool:
        """Whether it is the journal of a job that has ended."""
        job_id = journal_of(prefix)
        if job_id is None:
            return False
        with self._sessions.begin() as session:
            status = repository.status_of(session, job_id)
            return status is not None and status.ended

    def _given_up(self, prefix: str) -> bool:
        owner = attempt_of(prefix)
        if owner is None:
            return False  # nobody here wrote it
        with self._sessions.begin() as session:
            return _is_given_up(session, *owner)


def _is_given_up(session: Session, job_id: str, attempt: int) -> bool:
    """Whether the job is there and `attempt` does not hold it."""
    return repository.status_of(session, job_id) is not None and not repository.is_held(session, job_id, attempt)
