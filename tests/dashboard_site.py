"""The dashboard on SQLite with jobs in every state, for tests of its pages."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from api.dependencies import Services
from api.main import create_app
from elder_core.disk import file_sha256
from elder_core.reports.write import write as write_report
from elder_core.spec import JobSpec, ModelRef, Progress, Stage
from elder_service.db.schema import migrate
from elder_service.errors import RunnerDied
from elder_service.jobs import attempts, service
from elder_service.jobs.attempts import Claim, Outcome
from elder_service.jobs.service import Submission
from elder_service.settings import Settings
from elder_service.storage.base import StoredFile, attempt_prefix
from tests.servers import free_port
from tests.unit.elder_core.test_reports import report as sample_report

START_SECONDS = 20
RESULT = {
    "removed_layers": [5, 7, 9, 10],
    "layers_before": 16,
    "layers_after": 12,
    "parameters_before": 7_310_000,
    "parameters_after": 5_774_900,
    "perplexity_before": 40.1,
    "perplexity_after": 43.6,
    "decode_speedup": 1.27,
}


@dataclass(frozen=True)
class Site:
    """The application, and what a worker would do to its jobs. `url` is empty without a server."""

    app: FastAPI
    url: str = ""

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    def submit(self, model: str = "builtin:manuals-16l", **fields: object) -> str:
        """Queue a job; its id."""
        spec = JobSpec.model_validate({"model": ModelRef(id=model), "ratio": 0.25, **fields})
        with self.services.sessions.begin() as session:
            row, _ = service.submit(session, Submission(spec=spec, max_attempts=1))
            return row.id

    def claim(self) -> Claim:
        """Start the next job as a worker does."""
        with self.services.sessions.begin() as session:
            held = attempts.claim(session, "worker-1", 600)
        assert held is not None
        return held

    def progress(self, held: Claim, stage: Stage, step: int, total: int, **metrics: float) -> None:
        progress = Progress(stage=stage, step=step, total=total, metrics=metrics)
        with self.services.sessions.begin() as session:
            attempts.record_progress(session, held, progress, event=True)

    def succeed(self, held: Claim, folder: Path) -> None:
        """End the job with a report and a model file."""
        write_report(sample_report(), folder)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        names = {path.name: "report" for path in folder.glob("report.*")} | {"config.json": "model"}
        files = tuple(self._store(held, folder / name, kind) for name, kind in names.items())
        with self.services.sessions.begin() as session:
            attempts.succeed(session, held, Outcome(result=RESULT, files=files))

    def fail(self, held: Claim) -> None:
        error = RunnerDied("The job's process was ended by SIGKILL, which usually means that memory ran out.")
        details = {"signal": "SIGKILL", "exit_code": -9, "log_tail": ["loading weights", "<b>allocating 64 GB</b>"]}
        with self.services.sessions.begin() as session:
            attempts.fail(session, held, error, 0, details)

    def _store(self, held: Claim, path: Path, kind: str) -> StoredFile:
        content = path.read_bytes()
        name = f"model/{path.name}" if kind == "model" else path.name
        key = f"{attempt_prefix(held.job_id, held.attempt)}/{name}"
        self.services.storage.put(key, path, file_sha256(path))
        digest = hashlib.sha256(content).hexdigest()
        return StoredFile(name, kind, key, len(content), digest)  # type: ignore[arg-type]


def make_site(data_dir: Path) -> Site:
    app = create_app(Settings(data_dir=data_dir, _env_file=None))
    migrate(app.state.services.engine)
    return Site(app)


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[Site]:
    """The whole application on a free port, in a thread."""
    settings = Settings(data_dir=data_dir, _env_file=None)
    app = create_app(settings)
    migrate(app.state.services.engine)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        assert thread.is_alive(), "the server ended"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    try:
        yield Site(app, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
