"""The job's process, seen from both sides. Imports no torch: the supervisor imports this module."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

from elder_core.errors import ElderError, OutOfMemory
from elder_core.inspection import Sources
from elder_core.spec import JobSpec, Progress
from elder_service.errors import RunnerDied
from elder_service.jobs.attempts import Outcome
from elder_service.jobs.text import storable
from elder_service.processes import die_with_parent
from worker import scratch

DISCARD = signal.SIGUSR1
"""Tells a job's process that nobody will go on where it stands; comes before the SIGTERM that ends it."""

STOP_POLL_SECONDS = 0.1
DEATH_SECONDS = 2.0  # for a process that closed its pipe to end
VMSTAT = Path("/proc/vmstat")  # Linux's counters, of the whole machine also where a container reads them
LATELY_SECONDS = 30.0
LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Assignment:
    """Everything the job's process needs; it has no settings and no database."""

    job_id: str
    attempt: int
    spec: JobSpec
    sources: Sources
    device: str
    scratch: Path
    artifacts_dir: Path
    journal_seconds: float

    @property
    def log_path(self) -> Path:
        return self.scratch / "log.txt"


@dataclass(frozen=True)
class Failure:
    """A job's own error, as it crosses the pipe."""

    error: ElderError


@dataclass(frozen=True)
class Stopped:
    """The run ended because it was asked to."""


Message = Progress | Outcome | Failure | Stopped


class Child:
    """The process of one attempt, in a process group of its own."""

    def __init__(self, context: ForkServerContext, assignment: Assignment) -> None:
        scratch.make(assignment.scratch)
        self._log_path = assignment.log_path
        self._kernel_kills = KernelKills()
        self.connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=child_main, args=(assignment, theirs), name=assignment.job_id)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def stop(self, grace_seconds: float, meanwhile: Callable[[], None], *, keep: bool = False) -> Outcome | None:
        """SIGTERM, then after the grace SIGKILL, to the whole group; returns when the process is gone.

        Until then its messages are read, since a full pipe would hold it, and `meanwhile` is called again and again.
        With `keep` it writes down first where it stands, so that another attempt can go on from there.

        Returns the outcome of a run that was over before it heard, or whose outcome nobody had read yet.
        """
        if not keep:
            self._signal(DISCARD)
        self._signal(signal.SIGTERM)
        end = time.monotonic() + grace_seconds
        listened: list[Connection | int] = [self._process.sentinel, self.connection]
        outcome = None
        while self._process.is_alive() and (left := end - time.monotonic()) > 0:
            if self.connection in wait(listened, min(left, STOP_POLL_SECONDS)):
                message = self._received()
                if message is None:
                    listened.remove(self.connection)
                outcome = message if isinstance(message, Outcome) else outcome
            meanwhile()
        self.end()
        self._process.join()
        while self.connection in listened and self.connection.poll() and (message := self._received()) is not None:
            outcome = message if isinstance(message, Outcome) else outcome
        self.kill()
        return outcome

    def heard(self, seconds: float) -> Message | None:
        """The next message; None if there is none within `seconds`.

        Raises:
            EOFError, OSError: there is none to come; the latter if the process ended within a message.
        """
        self._kernel_kills.look()
        if not self.connection.poll(seconds):
            return None
        message: Message = self.connection.recv()
        return message

    def _received(self) -> Message | None:
        """The next message; None when there is none to come."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def end(self) -> None:
        """SIGKILL to the whole group, from any thread, without waiting for the end."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        self.end()
        self._process.join()
        self.connection.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        if self._process.exitcode is not None:
            return  # the number may be another process's by now
        for send in (os.killpg, os.kill):  # the group is not there in the first moments
            with suppress(ProcessLookupError):
                send(self._process.pid, number)
                return

    def death(self) -> tuple[RunnerDied | OutOfMemory, dict[str, object]]:
        """Why the process ended without a word: the error and its details. One that goes on in silence is killed.

        It was out of memory if SIGKILL ended it and the kernel has just killed something for want of memory.
        """
        self._process.join(DEATH_SECONDS)
        silent = self._process.exitcode is None
        if silent:
            self._signal(signal.SIGKILL)
            self._process.join()
        code = self._process.exitcode or 0
        details: dict[str, object] = {"log_tail": log_tail(self._log_path)}
        if silent:
            return RunnerDied("The job's process stopped telling how far it is, and was killed."), details
        if code >= 0:
            return RunnerDied(f"The job's process ended with exit code {code}."), {**details, "exit_code": code}
        name = signal.Signals(-code).name
        details["signal"] = name
        if -code == signal.SIGKILL and self._kernel_kills.lately():
            return OutOfMemory(f"The kernel ended the job's process for want of memory. {OutOfMemory.REMEDY}"), details
        unknown = -code == signal.SIGKILL and self._kernel_kills.untold
        hint = " (often the kernel, for want of memory)" if unknown else ""
        return RunnerDied(f"The job's process was ended by {name}{hint}."), details


class KernelKills:
    """Whether the kernel has lately killed a process for want of memory, by its counter for the whole machine."""

    def __init__(self) -> None:
        self._before = self._last = _kernel_kills()
        self._looked = time.monotonic()

    @property
    def untold(self) -> bool:
        """Whether this kernel does not count them."""
        return self._last is None

    def look(self) -> None:
        """To be called often: what the counter was a while ago is what it is compared with."""
        if time.monotonic() - self._looked >= LATELY_SECONDS:
            self._before, self._last = self._last, _kernel_kills()
            self._looked = time.monotonic()

    def lately(self) -> bool:
        """Whether it has since the last look but one; a large process takes a while from its kill to its end."""
        now = _kernel_kills()
        return now is not None and self._before is not None and now > self._before


def _kernel_kills() -> int | None:
    try:
        counters = VMSTAT.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(found[1]) if found else None


def log_tail(path: Path) -> list[str]:
    """The last lines of a log file; none if it is not there."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
        return storable(file.read().decode(errors="replace")).splitlines()[-LOG_TAIL_LINES:]


def child_main(assignment: Assignment, connection: Connection) -> None:
    """First code in the job's process."""
    os.setsid()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(DISCARD, signal.SIG_IGN)  # until there is something to discard
    log = os.open(assignment.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    print(f"{time.strftime('%FT%TZ', time.gmtime())} {assignment.job_id} attempt {assignment.attempt}", flush=True)

    from worker.runner import run  # already loaded in the fork server

    run(assignment, connection)
