"""Worker processes on a database and a broker of their own, for tests that strike them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from elder_service import queue
from elder_service.db.engine import SessionFactory, database_now, make_engine, make_sessions
from elder_service.db.models import JobRow
from elder_service.db.schema import migrate
from elder_service.jobs import repository, service
from elder_service.jobs.service import Submission
from elder_service.jobs.states import Status
from elder_service.processes import die_with_parent
from elder_service.settings import Settings
from tests.faults.gates import FOLDER, Gates
from tests.faults.script import Script

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 120  # for what takes seconds where nobody else is at work
MAX_ATTEMPTS = 3

KEPT = {"artifacts", "scratch", "broker", "secret", "elder.db", "elder.db-shm", "elder.db-wal"}
"""What may be below ELDER_DATA_DIR when nobody is at work."""

Seen = TypeVar("Seen")

# Short, so that a lost worker costs two or three seconds; in the same proportions as the defaults.
QUICK = {
    "ELDER_LEASE_SECONDS": "3",
    "ELDER_HEARTBEAT_SECONDS": "0.4",
    "ELDER_CANCEL_POLL_SECONDS": "0.1",
    "ELDER_CLAIM_SECONDS": "0.3",
    "ELDER_MAINTENANCE_SECONDS": "0.3",
    "ELDER_RETRY_DELAY_SECONDS": "0.05",
    "ELDER_CANCEL_GRACE_SECONDS": "0.3",
    "ELDER_DRAIN_SECONDS": "10",  # an end to waiting, which nothing here reaches
    "ELDER_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
}

# For workers that are not to lose their lease: a busy machine may stand still for longer than the quick one.
STEADY = {"ELDER_LEASE_SECONDS": "30"}


@dataclass
class Cluster:
    """`environment` is what its processes get; `workers` are those that were started, dead ones too.

    `accepted` are the jobs whose submitter was told that they are.
    """

    settings: Settings
    sessions: SessionFactory
    environment: dict[str, str]
    folder: Path
    gates: Gates
    workers: list[psutil.Popen] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    patience_seconds: float = WAIT_SECONDS

    # Processes -------------------------------------------------------------------------------------------------------

    def worker(self, **environment: str) -> psutil.Popen:
        """A new worker, ready to claim."""
        return self.workers_started(1, **environment)[0]

    def workers_started(self, count: int, **environment: str) -> list[psutil.Popen]:
        """Several, which start side by side."""
        first = len(self.workers)
        started = [self.start_worker(**environment) for _ in range(count)]
        for number in range(first, first + count):
            log = self.folder / f"worker-{number}.log"
            self.until(lambda log=log: "is ready" in log.read_text())  # type: ignore[misc]
        return started

    def start_worker(self, **environment: str) -> psutil.Popen:
        """A new worker, which is not waited for."""
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "tests.faults.worker"],
                cwd=ROOT,
                env={**self.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # nothing is left when pytest itself is killed
            )
        self.workers.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """Every process that lives in this cluster: workers, their fork servers, the jobs' own."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get(FOLDER) == self.environment[FOLDER]
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def runners(self) -> dict[str, psutil.Process]:
        """The jobs' own processes by job: the log, in the job's scratch folder, is their standard output."""
        found = {}
        for process in self.processes():
            with suppress(OSError):
                output = Path(f"/proc/{process.pid}/fd/1").readlink()
                if self.settings.scratch_dir in output.parents:
                    found[output.parts[-3]] = process
        return found

    def runner_of(self, job_id: str) -> psutil.Process | None:
        return self.runners().get(job_id)

    # Jobs ------------------------------------------------------------------------------------------------------------

    def submit(self, script: Script | None = None, **fields: object) -> str:
        """A job in the database, without a hint; its id."""
        given = {"max_attempts": MAX_ATTEMPTS, **fields}
        with self.sessions.begin() as session:
            row, _ = service.submit(session, Submission(spec=(script or Script()).spec(), **given))  # type: ignore[arg-type]
        self.accepted.add(row.id)
        return row.id

    def hint(self) -> bool:
        celery = queue.make_celery(self.settings)
        try:
            return queue.send_hint(celery)
        finally:
            celery.close()

    def cancel(self, job_id: str) -> Status:
        with self.sessions.begin() as session:
            return Status(service.cancel(session, job_id).status)

    def lease_runs_out(self, job_id: str) -> None:
        """Of a worker that is dead: now, instead of in a while."""
        self._lease_ends(job_id, timedelta())

    def lease_lasts(self, job_id: str) -> None:
        """For an hour, whatever its worker thinks."""
        self._lease_ends(job_id, timedelta(hours=1))

    def _lease_ends(self, job_id: str, after: timedelta) -> None:
        with self.sessions.begin() as session:
            repository.get(session, job_id, lock=True).lease_expires_at = database_now(session) + after

    def job(self, job_id: str) -> JobRow:
        with self.sessions.begin() as session:
            return repository.get(session, job_id)

    def jobs(self) -> list[str]:
        with self.sessions.begin() as session:
            return list(session.scalars(select(JobRow.id)))

    def events(self, job_id: str) -> list[str]:
        """What happened, without progress."""
        with self.sessions.begin() as session:
            rows = repository.events_after(session, job_id, 0)
        return [row.type for row in rows if row.type not in {"job.progress", "job.stage"}]

    def tell(self) -> None:
        """Print what happened, for the report of a test that fails: every event, and what the workers wrote."""
        with suppress(SQLAlchemyError), self.sessions.begin() as session:  # a test may have ended the database
            for job_id in session.scalars(select(JobRow.id).limit(20)):
                for row in repository.events_after(session, job_id, 0):
                    print(job_id, row.at.time(), row.type, row.data)
        for log in sorted(self.folder.glob("worker-*.log")):
            print(f"--- {log.name}", log.read_text(errors="replace")[-4000:], sep="\n")

    def ended(self, job_id: str) -> JobRow:
        """The job when it has ended."""
        return self.until(lambda: self.job(job_id), lambda row: Status(row.status).ended)

    def reached(self, point: str) -> psutil.Process:
        """The process that waits at `point`, as soon as one does."""
        pid = self.until(lambda: self.gates.held_process(point))
        assert pid is not None
        return psutil.Process(pid)

    def until(self, look: Callable[[], Seen], holds: Callable[[Seen], object] = bool) -> Seen:
        """What `look` sees as soon as `holds` is true of it."""
        end = time.monotonic() + self.patience_seconds
        while True:
            seen = look()
            if holds(seen):
                return seen
            assert time.monotonic() < end, f"{seen!r} after {self.patience_seconds} s\n{self.logs()}"
            time.sleep(0.02)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """SIGTERM to every worker that is left, SIGKILL to one that does not go."""
        alive = [worker for worker in self.workers if worker.is_running()]
        for worker in alive:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        _, deaf = psutil.wait_procs(alive, timeout=WAIT_SECONDS)
        for worker in deaf:
            worker.kill()
            worker.wait()
        assert not deaf, f"did not hear SIGTERM:\n{self.logs()}"

    def assert_nothing_left(self) -> None:
        """No process, and no file that tests/faults/invariants.py does not look at; to be called after `stop`.

        But a worker that a signal ended, before it could tidy up, leaves the folder of its fork server's socket.
        """
        self.until(self.processes, lambda left: not left)
        data, temporary = self.settings.data_dir, Path(self.environment["TMPDIR"])
        sockets = set(temporary.glob("pymp-*"))
        assert len(sockets) <= sum((worker.poll() or 0) < 0 for worker in self.workers)
        left = [*(set(temporary.iterdir()) - sockets), *(path for path in data.glob("*") if path.name not in KEPT)]
        assert not left


@contextmanager
def cluster(folder: Path, database_url: str | None = None, broker_url: str | None = None) -> Iterator[Cluster]:
    """A migrated database and no worker yet. Without URLs: SQLite and folders, as embedded."""
    environment = {**QUICK, "ELDER_DATA_DIR": str(folder / "data"), FOLDER: str(folder / f"gates-{uuid.uuid4().hex}")}
    if database_url and broker_url:
        environment |= {
            "ELDER_ENVIRONMENT": "production",
            "ELDER_DATABASE_URL": database_url,
            "ELDER_BROKER_URL": broker_url,
            "ELDER_SECRET_KEY": "s" * 40,
        }
    settings = Settings.model_validate(
        {key.removeprefix("ELDER_").lower(): value for key, value in environment.items() if key != FOLDER}
    )
    (folder / "logs").mkdir(parents=True)
    engine = make_engine(settings.effective_database_url)
    migrate(engine)
    # Not below `folder`: multiprocessing puts sockets there, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        everything = {**os.environ, **environment, "OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        made = Cluster(settings, make_sessions(engine), everything, folder / "logs", Gates(Path(environment[FOLDER])))
        try:
            yield made
            made.stop()
            made.assert_nothing_left()
        finally:
            made.tell()
            for process in made.processes():  # after a test that failed
                process.kill()
            engine.dispose()
