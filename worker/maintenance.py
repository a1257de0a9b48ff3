"""What every worker does beside its job: look for lost jobs, send lost hints, sweep what nobody owns."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session

from elder_service import queue
from elder_service.db.engine import SessionFactory
from elder_service.db.models import ArtifactRow, JobRow
from elder_service.jobs import reconcile
from elder_service.jobs.states import ACTIVE
from elder_service.settings import Settings
from elder_service.storage.base import Storage, attempt_prefix

_log = logging.getLogger(__name__)


class Maintenance:
    def __init__(self, settings: Settings, sessions: SessionFactory, storage: Storage, celery: Celery) -> None:
        self._settings = settings
        self._sessions = sessions
        self._storage = storage
        self._celery = celery

    def reconcile(self) -> None:
        """Requeue or end what was lost, then send the hints that are missing; one hint may start many jobs."""
        with self._sessions.begin() as session:
            hints = reconcile.reconcile(session, self._settings.retry_delay_seconds)
        for _ in hints:
            if not queue.send_hint(self._celery):
                return

    def sweep(self) -> None:
        """Delete artefacts and scratch space of attempts that ended without making them visible."""
        for job_prefix in self._storage.list_prefixes("jobs"):
            for prefix in self._storage.list_prefixes(job_prefix):
                if self._orphaned(prefix):
                    _log.info("sweeping %s", prefix)
                    self._storage.delete_prefix(prefix)
        scratch = self._settings.scratch_dir
        for folder in sorted(scratch.glob("jobs/*/attempt-*")):
            if not self._active(str(folder.relative_to(scratch))):
                shutil.rmtree(folder, ignore_errors=True)
                _remove_if_empty(folder.parent)

    def _orphaned(self, prefix: str) -> bool:
        with self._sessions.begin() as session:
            visible = session.scalars(
                select(ArtifactRow.id).where(ArtifactRow.storage_key.startswith(f"{prefix}/", autoescape=True)).limit(1)
            ).one_or_none()
            return visible is None and not _is_active(session, prefix)

    def _active(self, prefix: str) -> bool:
        with self._sessions.begin() as session:
            return _is_active(session, prefix)


def _is_active(session: Session, prefix: str) -> bool:
    job_id = prefix.split("/")[1]
    row = session.scalars(select(JobRow).where(JobRow.id == job_id, JobRow.status.in_(ACTIVE))).one_or_none()
    return row is not None and attempt_prefix(row.id, row.attempt) == prefix


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
