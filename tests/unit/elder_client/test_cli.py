"""The commands: what they send, what they print, and their exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from elder_client import cli
from elder_client.client import ElderClient
from elder_client.retry import RetryPolicy
from tests.unit.elder_client.scripted import (
    JOB,
    REPORT,
    RESULT,
    Answer,
    Script,
    answer,
    artifact,
    artifact_list,
    event,
    job,
    refusal,
    sse,
    stream,
)

METHOD = {"name": "elder", "title": "ELDeR", "summary": "Learn weights.", "source": "https://x", "parameters": {}}
ERROR = {"code": "out_of_memory", "message": "Too little memory.", "stage": "loading", "details": {"log_tail": "boom"}}


class Outcome:
    """One run of the command."""

    def __init__(self, script: Script, arguments: list[str]) -> None:
        self.script = script
        result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
        self.status, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def body(self) -> Any:
        return json.loads(self.script.requests[0].content)


Run = Callable[..., Outcome]


@pytest.fixture
def servers() -> list[str]:
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, servers: list[str]) -> Run:
    monkeypatch.delenv("ELDER_SERVER", raising=False)

    def run(*arguments: str, answers: list[Answer] | None = None) -> Outcome:
        script = Script(answers or [])
        policy = RetryPolicy(attempts=2, first_delay=0)

        def connect(server: str) -> ElderClient:
            servers.append(server)
            return ElderClient(server, retry=policy, outage=policy, transport=httpx2.MockTransport(script))

        monkeypatch.setattr(cli, "connect", connect)
        return Outcome(script, list(arguments))

    return run


def test_submit_prints_the_id(run: Run) -> None:
    done = run("submit", "builtin:tiny", "--ratio", "0.25", answers=[answer(job(), 201)])
    assert (done.status, done.out) == (0, "job_1\n")
    assert done.body == {"model": {"id": "builtin:tiny"}, "ratio": 0.25, "method": {"name": "elder"}}


@pytest.mark.parametrize(
    ("option", "limit"), [("max-perplexity-increase", 0.1), ("max-bytes", 12_000_000), ("min-speedup", 1.3)]
)
def test_submit_with_a_target(run: Run, option: str, limit: float) -> None:
    done = run("submit", "builtin:tiny", f"--{option}", str(limit), answers=[answer(job(), 201)])
    assert done.body["target"] == {option.replace("-", "_"): limit}


def test_submit_with_everything(run: Run) -> None:
    options = "--layers 3,7 --method elder --set gate_steps=20 --set method.gate=residual --set calibration.samples=64"
    more = "--set output.dtype=float32 --calibration local:a.txt --evaluation local:b.txt --seed 5 --metadata k=v=w"
    rest = "--revision main --priority high --idempotency-key mine"
    done = run("submit", "o/n", *options.split(), *more.split(), *rest.split(), answers=[answer(job(), 201)])
    assert done.status == 0
    assert done.body == {
        "model": {"id": "o/n", "revision": "main"},
        "layers": [3, 7],
        "method": {"name": "elder", "gate_steps": 20, "gate": "residual"},
        "calibration": {"samples": 64, "source": "local:a.txt"},
        "evaluation": {"source": "local:b.txt"},
        "output": {"dtype": "float32"},
        "seed": 5,
        "priority": "high",
        "metadata": {"k": "v=w"},
    }
    assert done.script.requests[0].headers["idempotency-key"] == "mine"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--layers", "3,x"],
        ["--set", "novalue"],
        ["--set", "nowhere.x=1"],
        ["--metadata", "=v"],
        ["--ratio", "much"],
        ["--unknown"],
    ],
)
def test_bad_usage_is_2(run: Run, wrong: list[str]) -> None:
    done = run("submit", "m", *wrong)
    assert done.status == 2
    assert done.out == ""
    assert not done.script.requests


def test_report_is_html_or_json(run: Run) -> None:
    assert run("report", JOB, "--html", "--json").status == 2


def test_a_refusal_is_2_and_says_why(run: Run) -> None:
    items = [{"loc": ["ratio"], "code": "invalid_ratio", "message": "must be below 1"}]
    refused = refusal(422, "invalid_ratio", "ratio is 2; give a number below 1.", errors=items)
    done = run("submit", "m", "--ratio", "2", answers=[refused])
    assert done.status == 2
    assert done.err == "error [invalid_ratio]: ratio is 2; give a number below 1.\n  ratio: must be below 1\n"
    assert done.out == ""


def test_an_unknown_job_is_2(run: Run) -> None:
    done = run("show", JOB, answers=[refusal(404, "job_not_found", "There is no job 'job_1'.")])
    assert (done.status, done.err) == (2, "error [job_not_found]: There is no job 'job_1'.\n")


def test_a_bad_server_address_is_2(run: Run) -> None:
    assert run("list", "--server", "nonsense").status == 2


@pytest.mark.parametrize(
    "answers",
    [[httpx2.ConnectError("refused")] * 2, [httpx2.Response(500)], [httpx2.Response(200, text="<html>")]],
    ids=["unreachable", "fault", "another service"],
)
def test_no_working_server_is_3(run: Run, answers: list[Answer]) -> None:
    done = run("list", answers=answers)
    assert done.status == 3
    assert done.err.startswith("error [")


def test_the_server_comes_from_the_option_or_the_environment(
    run: Run, servers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("show", JOB, answers=[answer(job())])
    monkeypatch.setenv("ELDER_SERVER", "http://env:1")
    run("show", JOB, answers=[answer(job())])
    run("show", JOB, "--server", "http://option:2", answers=[answer(job())])
    assert servers == ["http://127.0.0.1:8321", "http://env:1", "http://option:2"]


def finished(status: str) -> list[Answer]:
    failed: dict[str, Any] = {"error": ERROR} if status == "failed" else {}
    body = job(status, result=RESULT if status == "succeeded" else None, **failed)
    progress: dict[str, Any] = {"stage": "selecting", "step": 5, "total": 10, "fraction": 0.3, "metrics": {"loss": 2.5}}
    events = [
        event(1, "job.created"),
        event(2, "job.started", attempt=1),
        event(3, "job.stage", stage="selecting"),
        event(4, **progress),
        event(5, **progress | {"step": 6, "fraction": 0.31}),
        event(6, "job.requeued", reason="its worker was lost"),
        event(7, f"job.{status}", **failed),
    ]
    return [stream(sse(*events)), answer(body)]


def test_follow_prints_lines_where_there_is_no_terminal(run: Run) -> None:
    done = run("follow", JOB, answers=finished("succeeded"))
    assert done.status == 0
    texts = [line.partition(" ")[2] for line in done.out.splitlines()]
    assert texts[:6] == [
        "queued",
        "started, attempt 1",
        "selecting",
        "selecting 5/10, 30% of the job  loss 2.5",
        "queued again: its worker was lost",
        "succeeded",
    ]
    assert "10 → 11" in done.out
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("failed", "error [out_of_memory]: Job job_1 failed while loading: Too little memory."),
        ("cancelled", "error [job_cancelled]: Job job_1 ended as cancelled."),
        ("expired", "error [job_expired]: Job job_1 ended as expired."),
    ],
)
def test_a_job_without_a_result_is_1(run: Run, status: str, message: str) -> None:
    done = run("submit", "m", "--ratio", "0.5", "--follow", answers=[answer(job(), 201), *finished(status)])
    assert done.status == 1
    assert done.err.strip() == message
    assert run("follow", JOB, answers=finished(status)).status == 1
    assert (
        run("submit", "m", "--ratio", "0.5", "--wait", answers=[answer(job(status, error=ERROR), 201)] * 2).status == 1
    )


def test_a_failed_job_shows_the_end_of_its_log(run: Run) -> None:
    done = run("show", JOB, answers=[answer(job("failed", error=ERROR))])
    assert done.status == 0
    assert "boom" in done.out


@pytest.mark.parametrize("command", [["submit", "m", "--follow"], ["submit", "m", "--wait"], ["follow", JOB]])
def test_with_json_a_failed_job_is_still_one_document(run: Run, command: list[str]) -> None:
    created = [answer(job(), 201)] if command[0] == "submit" else []
    done = run(*command, "--json", answers=[*created, answer(job("failed", error=ERROR))])
    assert done.status == 1
    assert done.document["error"]["code"] == "out_of_memory"


@pytest.mark.parametrize(
    ("command", "answers", "expected"),
    [
        (["submit", "m"], [answer(job(), 201)], lambda found: found["id"] == JOB),
        (["list"], [answer({"data": [job(novelty=1)], "has_more": False})], lambda found: found[0]["novelty"] == 1),
        (["show", JOB], [answer(job("running"))], lambda found: found["status"] == "running"),
        (["cancel", JOB], [answer(job("cancelling"))], lambda found: found["status"] == "cancelling"),
        (["report", JOB], [answer(REPORT)], lambda found: found["weight_label"] == REPORT["weight_label"]),
        (["methods"], [answer({"data": [METHOD]})], lambda found: found[0]["name"] == "elder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_json_is_one_document(
    run: Run, command: list[str], answers: list[Answer], expected: Callable[[Any], bool]
) -> None:
    done = run(*command, "--json", answers=[_copy(item) for item in answers])
    assert done.status == 0
    assert expected(done.document)


def _copy(item: Answer) -> Answer:
    return httpx2.Response(item.status_code, content=item.content) if isinstance(item, httpx2.Response) else item


def test_list_shows_a_table(run: Run) -> None:
    jobs = [job("succeeded", result=RESULT), job("running", "job_2", stage="selecting")]
    done = run("list", "--status", "running", "--limit", "2", answers=[answer({"data": jobs, "has_more": True})])
    assert done.status == 0
    assert "job_1" in done.out
    assert "selecting" in done.out
    assert dict(done.script.requests[0].url.params) == {"limit": "2", "status": "running"}


def test_the_tables_for_people(run: Run) -> None:
    assert "No jobs." in run("list", answers=[answer({"data": [], "has_more": False})]).out
    assert "Learn weights." in run("methods", answers=[answer({"data": [METHOD]})]).out
    assert "1.100" in run("report", JOB, answers=[answer(REPORT)]).out
    assert run("cancel", JOB, answers=[answer(job("cancelling"))]).out == "job_1 is cancelling\n"
    assert run("report", JOB, "--html", answers=[httpx2.Response(200, text="<p>é")]).out == "<p>é\n"


def test_download(run: Run, tmp_path: Path) -> None:
    answers: list[Answer] = [artifact_list(artifact("a", b"1")), httpx2.Response(200, content=b"1")]
    done = run("download", JOB, str(tmp_path / "out"), answers=answers)
    assert (done.status, done.out) == (0, f"1 files in {tmp_path / 'out'}, verified\n")
    done = run("download", JOB, str(tmp_path / "out"), "--json", answers=[artifact_list(artifact("a", b"1"))])
    assert done.document == [str(tmp_path / "out" / "a")]


@pytest.mark.parametrize(
    "answers",
    [
        [artifact_list(artifact("../a", b"1"))],
        [artifact_list(artifact("a", b"1")), *[httpx2.Response(200, content=b"2")] * 2],
        [artifact_list(), answer(job("running"))],
    ],
    ids=["unsafe", "checksum", "no files"],
)
def test_an_unsuccessful_download_is_1(run: Run, tmp_path: Path, answers: list[Answer]) -> None:
    done = run("download", JOB, str(tmp_path / "out"), answers=[_copy(item) for item in answers])
    assert done.status == 1
    assert done.err.startswith("error [")


def test_a_folder_that_cannot_be_written_is_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("download", JOB, str(tmp_path / "file"), answers=[artifact_list(artifact("a", b"1"))])
    assert done.status == 1
    assert done.err.startswith("error [file]: ")


def test_interrupting_leaves_the_job_alone(run: Run) -> None:
    def interrupt(_: httpx2.Request) -> httpx2.Response:
        raise KeyboardInterrupt

    done = run("follow", JOB, answers=[interrupt])
    assert done.status == 130
    assert "goes on" in done.err
