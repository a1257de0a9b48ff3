"""The real worker, whose jobs are the fake pipeline's, with places in its supervisor where a test can hold it."""

from __future__ import annotations

from typing import Any

from elder_service import logging
from elder_service.db import engine
from elder_service.settings import load_settings
from tests.faults import gates
from worker import app, attempt, child, forkserver
from worker.attempt import Attempt
from worker.supervisor import Supervisor

FAKE = ("worker.forkserver_guard", "tests.faults.worker.fake_pipeline", "worker.runner")
SWEEP_SECONDS = 0.5
# Ends to waiting that a busy machine, which stands still now and then, is not to reach.
DRAIN_NOTICE_SECONDS = 10.0  # between two signals to one service
DEATH_SECONDS = 20.0  # from the end of a process's pipe to its own
IDLE_TRANSACTION_SECONDS = 1  # half of the lease, as in the product


def main() -> None:
    settings = load_settings()
    logging.configure(settings.log_level)
    forkserver.PRELOADED = FAKE
    app.SWEEP_SECONDS = SWEEP_SECONDS
    attempt.DRAIN_NOTICE_SECONDS = DRAIN_NOTICE_SECONDS
    child.DEATH_SECONDS = DEATH_SECONDS
    engine.IDLE_TRANSACTION_SECONDS = IDLE_TRANSACTION_SECONDS
    _hold_supervisor(gates.of_this_process())
    app.run_worker(settings)


def _hold_supervisor(places: gates.Gates) -> None:
    """Places `claimed`, before the process starts; `before-last-update` and `after-last-update`."""
    run, finish = Supervisor._run, Attempt._finally

    def held_run(supervisor: Supervisor, *claim: Any) -> None:
        places.reach("claimed")
        run(supervisor, *claim)

    def held_finish(attempt: Attempt, *write: Any) -> None:
        places.reach("before-last-update")
        finish(attempt, *write)
        places.reach("after-last-update")

    Supervisor._run = held_run  # type: ignore[method-assign]
    Attempt._finally = held_finish  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
