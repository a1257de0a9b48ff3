"""The worker process: a Celery worker that listens for hints, and two timers that do not need any."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from celery import signals

from elder_service.db.engine import make_engine, make_sessions
from elder_service.db.schema import check_head
from elder_service.jobs.hardware import Capacity
from elder_service.queue import QUEUE, make_celery
from elder_service.repeat import Repeat
from elder_service.settings import Settings
from elder_service.storage.local import LocalStorage
from worker import tasks
from worker.forkserver import ForkServer
from worker.hardware import acquired
from worker.maintenance import Maintenance
from worker.pulse import pulse_of
from worker.supervisor import Supervisor

SWEEP_SECONDS = 600.0

_log = logging.getLogger(__name__)


def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then give the running job back and return.

    Raises:
        SchemaMismatch: the database is at another migration.
        NoFreeGpu: there is no GPU for this worker, and it is to have one.
    """
    with acquired(settings) as capacity:
        _log.info("this worker has %s", capacity)
        _run(settings, capacity)


def _run(settings: Settings, capacity: Capacity) -> None:
    engine = make_engine(settings.effective_database_url)
    check_head(engine)
    sessions = make_sessions(engine)
    storage = LocalStorage(settings.artifacts_dir)
    celery = make_celery(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)  # the pulse comes before any job
    pulse = pulse_of(settings)
    fork_server = ForkServer()
    supervisor = Supervisor(settings, sessions, storage, fork_server, pulse, capacity)
    maintenance = Maintenance(settings, sessions, storage, celery)
    tasks.register(celery, supervisor)

    stop = threading.Event()
    timers = [
        Repeat("claim", settings.claim_seconds, stop, supervisor.run_available),
        Repeat("register", settings.heartbeat_seconds, stop, supervisor.register),
        Repeat("reconcile", settings.maintenance_seconds, stop, maintenance.reconcile),
        Repeat("sweep", SWEEP_SECONDS, stop, maintenance.sweep),
    ]

    def start() -> None:
        try:
            supervisor.warm_up()
        except Exception:
            _log.exception("the worker cannot start")
            os.kill(os.getpid(), signal.SIGTERM)  # or it would live on and never claim
            return
        _log.info("worker %s is ready", supervisor.owner)
        for timer in timers:
            timer.start()

    def drain(**_: Any) -> None:
        stop.set()
        supervisor.drain()

    fork_server.start()  # loads torch while Celery starts
    # Not worker_ready, which waits for the broker: jobs are claimed by timer while there is none. In a thread, so that
    # the worker can be stopped meanwhile; a hint that comes too early is passed over.
    signals.celeryd_after_setup.connect(lambda **_: threading.Thread(target=start, daemon=True).start(), weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    try:
        celery.worker_main(
            [
                "worker",
                "--pool=threads",
                "--concurrency=1",
                f"--queues={QUEUE}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                f"--loglevel={settings.log_level}",
            ]
        )
    finally:
        drain()
        supervisor.wait_idle(settings.drain_seconds)
        supervisor.leave()
        pulse.end()
        engine.dispose()
