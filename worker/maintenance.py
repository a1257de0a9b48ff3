"""What every worker does beside its job: look for lost jobs, send lost hints, sweep what nobody owns."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from celery import Celery

from elder_core.cache_folder import remove_unused
from elder_service import queue
from elder_service.db.engine import SessionFactory
from elder_service.jobs import reconcile, repository
from elder_service.settings import Settings
from elder_service.storage.base import Storage, attempt_of, folder_of, journal_of
from elder_service.storage.local import folders_in
from worker import scratch

T = TypeVar("T")
BATCH = 500  # jobs that the database is asked about at once

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
        for jobs in _batches(self._storage.list_prefixes("jobs")):
            for prefix in self._useless([prefix for job in jobs for prefix in self._storage.list_prefixes(job)]):
                _log.info("sweeping %s", prefix)
                self._storage.delete_prefix(prefix)

    def _sweep_scratch(self) -> None:
        root = self._settings.scratch_dir
        for jobs in _batches(folders_in(root / "jobs")):
            folders = {str(folder.relative_to(root)): folder for job in jobs for folder in folders_in(job)}
            for prefix in self._useless(list(folders), visible=False):
                scratch.clear(folders[prefix])
            for job in jobs:
                scratch.remove_if_empty(job)

    def _useless(self, prefixes: Sequence[str], *, visible: bool = True) -> list[str]:
        """Those of an attempt that does not hold its job, unless callers see a file in it (`visible`: they may), and
        the journals of jobs that have ended. What is of no attempt, or of a job that is not there, is somebody else's.

        The order matters: asked the other way round, an attempt that succeeds in between loses its files. PostgreSQL
        gives each statement the rows of its own moment. An attempt that no longer holds its job has committed all
        that it ever will, so the second statement sees whatever it made visible. And `prefixes` are older than both, so
        each is of an attempt that was claimed before.
        """
        attempts = {prefix: owner for prefix in prefixes if (owner := attempt_of(prefix)) is not None}
        journals = {prefix: job_id for prefix in prefixes if (job_id := journal_of(prefix)) is not None}
        ids = {*journals.values(), *(job_id for job_id, _ in attempts.values())}
        with self._sessions.begin() as session:
            standing = repository.standing(session, ids)
            seen = repository.artifact_keys(session, ids) if visible else []
        kept = {folder_of(key) for key in seen}
        given_up = [
            prefix
            for prefix, (job_id, attempt) in attempts.items()
            if job_id in standing and standing[job_id].attempt != attempt and prefix not in kept
        ]
        done = [prefix for prefix, job_id in journals.items() if job_id in standing and standing[job_id].status.ended]
        return given_up + done


def _batches(found: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(found)
    while batch := list(islice(rest, BATCH)):
        yield batch
