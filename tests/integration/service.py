"""A real service for tests: the API under uvicorn and workers, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from elder_service.processes import die_with_parent

START_SECONDS = 60
WAIT_SECONDS = 90

FAST = {
    "ELDER_LEASE_SECONDS": "3",
    "ELDER_HEARTBEAT_SECONDS": "0.5",
    "ELDER_CANCEL_POLL_SECONDS": "0.2",
    "ELDER_CLAIM_SECONDS": "0.5",
    "ELDER_MAINTENANCE_SECONDS": "0.5",
    "ELDER_RETRY_DELAY_SECONDS": "0.1",
    "ELDER_MAX_ATTEMPTS": "2",
    "ELDER_JOURNAL_SECONDS": "0",
}


@dataclass
class Service:
    """Starts processes with one environment; all are gone when the block of `running` ends."""

    environment: dict[str, str]
    folder: Path
    url: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def server(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `elder-server` with these arguments; its output goes to a file of its own."""
        with (self.folder / f"{arguments[0]}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "elder_service", *arguments],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # nothing is left when pytest itself is killed
            )
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        """The worker: the one that is there, or a new one."""
        alive = [process for process in self.processes if process.args[3] == "worker" and process.poll() is None]  # type: ignore[index]
        return alive[0] if alive else self.server("worker")

    def cancel_all(self) -> None:
        """Leave no job for the next test."""
        for state in ("queued", "running", "cancelling"):
            for found in self.get(f"/v1/jobs?status={state}")["data"]:
                self.post(f"/v1/jobs/{found['id']}/cancel")
        self.wait_for(lambda: self.get("/v1/jobs?status=cancelling")["data"], lambda left: not left)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def get(self, path: str) -> Any:
        response = httpx2.get(f"{self.url}{path}", timeout=WAIT_SECONDS)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: Any = None) -> Any:
        response = httpx2.post(f"{self.url}{path}", json=body, timeout=WAIT_SECONDS)
        assert response.is_success, response.text
        return response.json()

    def submit(self, **fields: Any) -> str:
        job_id: str = self.post("/v1/jobs", job(**fields))["id"]
        return job_id

    def job(self, job_id: str) -> Any:
        return self.get(f"/v1/jobs/{job_id}")

    def events(self, job_id: str) -> list[str]:
        data = self.get(f"/v1/jobs/{job_id}/events")["data"]
        assert [event["seq"] for event in data] == list(range(1, len(data) + 1))
        return [event["type"] for event in data if event["type"] not in {"job.progress", "job.stage"}]

    def wait(self, job_id: str, until: Callable[[Any], bool]) -> Any:
        """The job as soon as `until` holds of it."""
        return self.wait_for(lambda: self.job(job_id), until)

    def wait_for(self, look: Callable[[], Any], until: Callable[[Any], bool]) -> Any:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            found = look()
            if until(found):
                return found
            assert time.monotonic() < end, f"{found}\n{self.logs()}"
            time.sleep(0.1)


def job(**fields: Any) -> dict[str, Any]:
    """A job of a second or two on the tiny model."""
    quick = {"name": "elder", "gate_steps": 2, "gate_batch_size": 1, "updates": 2, "batch_size": 1}
    return {
        "model": {"id": "local:tiny-llama"},
        "layers_to_remove": 2,
        "method": {**quick, **fields.pop("method", {})},
        "calibration": {"samples": 4, "sequence_length": 32},
        "evaluation": {"samples": 2, "speed": False, "generation": False},
        **fields,
    }


def endless(**fields: Any) -> dict[str, Any]:
    """Fields of a job that does not end by itself."""
    return {"method": {"updates": None, "seconds": 3600}, **fields}


def running_steps(found: Any) -> bool:
    """The job is training."""
    return found["status"] == "running" and found["stage"] == "regularizing" and found["progress"]["step"] > 0


@contextmanager
def running(folder: Path, environment: dict[str, str]) -> Iterator[Service]:
    """A migrated service with an API and no worker yet."""
    folder.mkdir(exist_ok=True)
    service = Service({**os.environ, **FAST, "OMP_NUM_THREADS": "1", **environment}, folder)
    try:
        assert service.server("migrate").wait(START_SECONDS) == 0, service.logs()
        start_api(service, "api")
        yield service
    finally:
        stop(service.processes)


def start_api(service: Service, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `elder-server api` or `serve` on a free port and wait until it answers."""
    process = service.server(*arguments, "--port", "0")
    log = service.folder / f"{arguments[0]}-{len(service.processes) - 1}.log"
    end = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        address = next((line.split()[1] for line in log.read_text().splitlines() if line.startswith("Dashboard")), None)
        if address and _answers(address):
            service.url = address.rstrip("/")
            return process
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}livez", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
