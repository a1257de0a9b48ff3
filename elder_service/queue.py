"""The Celery app and the one thing that is sent through it: a hint that there may be work.

A hint carries no state and may be lost, doubled or late: workers look for jobs by themselves as well.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError

from elder_service import folder_broker
from elder_service.settings import Settings

HINT_TASK = "elder.run_next_job"
QUEUE = "elder"
POLLING_SECONDS = 0.1
# A hint that nobody took for so long is dropped: jobs still waiting get another, and workers look by timer.
HINT_LIFE_SECONDS = 30
# Of a caller of the API, whose job is stored already: a broker that is slower than that may as well be away.
PUBLISH_SECONDS = 1.0

_log = logging.getLogger(__name__)


def make_celery(settings: Settings, *, only_sends: bool = False) -> Celery:
    """`only_sends`: for a process that listens to nothing, and whose callers wait while it sends."""
    app = Celery("elder", set_as_current=False)
    app.conf.update(
        broker_url=settings.broker_url or f"{folder_broker.SCHEME}://",
        broker_transport_options=_transport_options(settings, only_sends=only_sends),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_acks_late=False,
        task_publish_retry=False,
        task_store_eager_result=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=(settings.broker_url or "").startswith("redis"),
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        enable_utc=True,
    )
    return app


def _transport_options(settings: Settings, *, only_sends: bool) -> dict[str, Any]:
    if settings.broker_url is None:
        folders = {
            name: str(settings.broker_dir / folder)
            for name, folder in (
                ("data_folder_in", "queue"),
                ("data_folder_out", "queue"),
                ("processed_folder", "processed"),
                ("control_folder", "control"),
            )
        }
        for folder in folders.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        return {**folders, "polling_interval": POLLING_SECONDS, "store_processed": False}
    return {
        "socket_timeout": PUBLISH_SECONDS if only_sends else 5,
        "socket_connect_timeout": PUBLISH_SECONDS if only_sends else 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": not only_sends,
        "max_retries": 0,
    }


def send_hint(app: Celery) -> bool:
    """Tell an idle worker to look for a job; False when the broker does not take it."""
    try:
        app.send_task(HINT_TASK, ignore_result=True, retry=False, expires=HINT_LIFE_SECONDS)
    except (KombuError, OSError) as error:
        _log.warning("No hint sent, workers will find the job by themselves: %s", error)
        return False
    return True


def broker_reachable(app: Celery) -> bool:
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0, timeout=2)
    except (KombuError, OSError):
        return False
    return True
