"""The process that those of the jobs are forked from: it has torch loaded, so a job starts in no time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOADED = ("worker.forkserver_guard", "torch", "transformers", "worker.runner")
WORKER_PID = "ELDER_WORKER_PID"
"""Set for the fork server alone: the process whose end is to be its own."""

SPIN_COUNT = "3000"


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads spin for some microseconds when they wait, then sleep; what a user has set stays.

    Between the small operations of a small model, threads that sleep at once cost a third of the speed on an idle
    machine. Threads that spin for milliseconds, GNU OpenMP's default, cost half of it beside one other busy process
    (benchmarks/waiting.py). Other OpenMPs do not know the count, and there they sleep at once.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


class ForkServer:
    """One for the whole process, as multiprocessing has it. CUDA is never touched before a fork."""

    def __init__(self) -> None:
        wait_briefly(os.environ)
        os.environ[WORKER_PID] = str(os.getpid())
        # multiprocessing would import the script that was started, `elder-server`, into every job's process anew, which
        # takes a quarter of a second and is of no use there.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))
        # The kernel ends the server with the thread that started it (forkserver_guard), so that must be one that
        # lives as long as the worker, whoever finds that a new server is needed.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="forkserver")

    def start(self) -> None:
        """Have a server, a new one if it was lost; returns while it still loads torch."""
        self._starter.submit(forkserver.ensure_running).result()

    def warm_up(self) -> None:
        """Return once the server has loaded torch and starts processes at once.

        Raises:
            EOFError, OSError: it did not come up, or cannot load what a job needs.
        """
        self.start()
        process = self.context.Process(target=_import, args=(PRELOADED,))
        process.start()
        process.join()
        if process.exitcode:
            raise OSError(f"a job's process cannot be prepared (exit code {process.exitcode}): see above what fails")


def _import(names: tuple[str, ...]) -> None:
    """Costs nothing where the server has them; it says nothing of those that it could not import."""
    for name in names:
        importlib.import_module(name)
