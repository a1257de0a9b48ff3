"""Real worker processes and what happens to them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.integration.service import Service, endless, running, running_steps, start_api

ENDED = {"succeeded", "failed", "cancelled", "expired"}


def ended(job: dict[str, object]) -> bool:
    return job["status"] in ENDED


def child_of(worker: subprocess.Popen[bytes], job_id: str) -> psutil.Process:
    """The job's own process: its log file, in the job's scratch folder, is its standard output."""
    for process in psutil.Process(worker.pid).children(recursive=True):
        if job_id in str(Path(f"/proc/{process.pid}/fd/1").readlink()):
            return process
    raise AssertionError(f"no process of {job_id}")


def kill(worker: subprocess.Popen[bytes], job_id: str, victim: str) -> None:
    """The job's own process, or the whole group of its worker."""
    if victim == "runner":
        child_of(worker, job_id).kill()
        return
    for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]:
        process.kill()
    worker.wait()


def left_alive(processes: list[psutil.Process], timeout_seconds: float) -> list[psutil.Process]:
    """Those that still run after the time. A zombie is dead; only its new parent has not taken note."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_seconds)
    return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_job_from_submission_to_download(service: Service, tmp_path: Path) -> None:
    service.worker()
    job_id = service.submit(metadata={"team": "a"})
    job = service.wait(job_id, ended)
    assert job["status"] == "succeeded", (job["error"], service.logs())
    assert job["result"]["layers_after"] == 4
    assert [entry["stage"] for entry in job["stage_history"]][:3] == ["resolving", "calibrating", "loading"]
    assert service.events(job_id) == ["job.created", "job.started", "job.succeeded"]
    for file in service.get(f"/v1/jobs/{job_id}/artifacts")["data"]:
        target = tmp_path / "download" / file["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        content = httpx2.get(file["download_url"]).content
        assert len(content) == file["size_bytes"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"], file["name"]
        target.write_bytes(content)
    report = service.get(f"/v1/jobs/{job_id}/report")
    assert report == json.loads((tmp_path / "download" / "report.json").read_text())
    assert report["evaluation"]["after"]["layers"] == 4
    load = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        "print(A.from_pretrained(sys.argv[1]).config.num_hidden_layers)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", load, tmp_path / "download" / "model"], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "4"
    scratch = Path(service.environment["ELDER_DATA_DIR"]) / "scratch" / "jobs"
    service.wait_for((scratch / job_id).exists, lambda left: not left)  # others' jobs may have left theirs


def test_cancel_while_it_runs(service: Service) -> None:
    worker = service.worker()
    job_id = service.submit(**endless())
    service.wait(job_id, running_steps)
    child = child_of(worker, job_id)
    assert service.post(f"/v1/jobs/{job_id}/cancel")["status"] == "cancelling"
    job = service.wait(job_id, ended)
    assert job["status"] == "cancelled"
    assert not child.is_running()
    assert service.events(job_id)[-2:] == ["job.cancelling", "job.cancelled"]


def test_cancel_of_a_process_that_does_not_hear_sigterm(service: Service) -> None:
    worker = service.worker()
    job_id = service.submit(**endless())
    service.wait(job_id, running_steps)
    child = child_of(worker, job_id)
    child.suspend()  # as deaf as one in an endless call of a library
    service.post(f"/v1/jobs/{job_id}/cancel")
    assert service.wait(job_id, ended)["status"] == "cancelled"
    assert not left_alive([child], 5)


def test_a_killed_child_is_told_of_and_tried_again(service: Service) -> None:
    worker = service.worker()
    job_id = service.submit(**endless())
    for attempt in (1, 2):
        service.wait(job_id, lambda job, attempt=attempt: running_steps(job) and job["attempt"] == attempt)
        child_of(worker, job_id).kill()
    job = service.wait(job_id, ended)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "runner_died"
    assert job["error"]["stage"] == "regularizing"
    assert job["error"]["details"]["signal"] == "SIGKILL"
    assert job_id in job["error"]["details"]["log_tail"][0]
    assert service.events(job_id) == ["job.created", "job.started", "job.requeued", "job.started", "job.failed"]


@pytest.mark.parametrize("victim", ["runner", "group"])
def test_a_killed_job_goes_on_where_it_was_and_ends_with_the_same_bytes(service: Service, victim: str) -> None:
    """On the same worker, and on another that is started when the first is dead with all of its processes."""
    worker = service.worker()
    long = {"method": {"updates": 600}, "calibration": {"samples": 40, "sequence_length": 32}}
    killed = service.submit(**long)
    service.wait(killed, lambda job: running_steps(job) and job["progress"]["step"] > 100)
    kill(worker, killed, victim)
    service.worker()
    undisturbed = service.submit(**long)
    jobs = [service.wait(job_id, ended) for job_id in (killed, undisturbed)]

    assert [job["status"] for job in jobs] == ["succeeded", "succeeded"], service.logs()
    assert [job["attempt"] for job in jobs] == [2, 1]
    assert service.get(f"/v1/jobs/{killed}/report")["resumptions"] == 1
    hashes = [
        {
            file["name"]: file["sha256"]
            for file in service.get(f"/v1/jobs/{job_id}/artifacts")["data"]
            if file["kind"] == "model"
        }
        for job_id in (killed, undisturbed)
    ]
    assert hashes[0] == hashes[1]
    assert not list(Path(service.environment["ELDER_DATA_DIR"]).rglob("journal"))


def test_a_killed_worker_costs_only_its_lease(service: Service) -> None:
    worker = service.worker()
    job_id = service.submit(**endless())
    service.wait(job_id, running_steps)
    child = child_of(worker, job_id)
    worker.kill()
    worker.wait()
    service.wait_for(child.is_running, lambda alive: not alive)
    service.worker()
    service.wait(job_id, lambda job: bool(running_steps(job)) and job["attempt"] == 2)
    assert service.events(job_id) == ["job.created", "job.started", "job.requeued", "job.started"]


def test_a_worker_told_to_stop_gives_its_job_back(service: Service) -> None:
    worker = service.worker()
    job_id = service.submit(**endless())
    service.wait(job_id, running_steps)
    processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    worker.terminate()
    worker.wait(15)
    assert not left_alive(processes, 5)
    job = service.job(job_id)
    assert job["status"] == "queued", service.logs()
    assert service.events(job_id)[-1] == "job.requeued"


def test_a_job_that_takes_too_long_is_ended(service: Service) -> None:
    service.worker()
    job = service.wait(service.submit(**endless(max_runtime_seconds=2)), ended)
    assert (job["status"], job["error"]["code"]) == ("failed", "runtime_exceeded")


def test_the_jobs_own_error_is_told(service: Service) -> None:
    service.worker()
    job = service.wait(service.submit(model={"id": "local:broken-llama"}), ended)
    assert (job["status"], job["attempt"]) == ("failed", 1)
    assert job["error"]["code"] == "non_finite_weights"


def test_a_lost_fork_server_costs_one_attempt(service: Service) -> None:
    worker = service.worker()
    job_id = service.submit(**endless())
    service.wait(job_id, running_steps)
    child_of(worker, job_id).parent().kill()
    service.wait(job_id, lambda job: bool(running_steps(job)) and job["attempt"] == 2)
    assert service.events(job_id) == ["job.created", "job.started", "job.requeued", "job.started"]


def test_serve_starts_a_killed_worker_again(tmp_path: Path, model_root: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    data = {"ELDER_DATA_DIR": str(tmp_path / "data"), "ELDER_MODEL_ROOTS": str(model_root)}
    with running(folder, data) as service:
        server = start_api(service, "serve")

        def worker() -> list[psutil.Process]:
            found = []
            for child in psutil.Process(server.pid).children():
                with suppress(psutil.NoSuchProcess):  # just killed, and not gone yet
                    if "worker" in child.cmdline():
                        found.append(child)
            return found

        first = service.wait_for(worker, bool)[0]
        first.kill()
        second = service.wait_for(worker, lambda found: found and found[0].pid != first.pid)[0]
        assert service.wait(service.submit(), ended)["status"] == "succeeded", service.logs()
        assert second.is_running()


def test_serve_stops_everything_it_started(tmp_path: Path, model_root: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    environment = {**os.environ, "ELDER_DATA_DIR": str(tmp_path / "data"), "ELDER_MODEL_ROOTS": str(model_root)}
    service = Service(environment, folder)
    job_id = None
    for attempt, number in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        server = start_api(service, "serve")
        job_id = job_id or service.submit(**endless())  # the second server finds it given back by the first
        service.wait(job_id, lambda job, attempt=attempt: running_steps(job) and job["attempt"] == attempt)
        processes = psutil.Process(server.pid).children(recursive=True)
        assert len(processes) >= 3
        started = time.monotonic()
        server.send_signal(number)
        server.wait(10)
        assert not left_alive(processes, max(0.0, 10 - (time.monotonic() - started)))
