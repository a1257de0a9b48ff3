"""The Celery tasks: thin shells over the supervisor."""

from __future__ import annotations

from celery import Celery

from elder_service.queue import HINT_TASK
from worker.supervisor import Supervisor


def register(app: Celery, supervisor: Supervisor) -> None:
    def run_next_job() -> None:
        supervisor.run_available()

    app.task(run_next_job, name=HINT_TASK, ignore_result=True)
