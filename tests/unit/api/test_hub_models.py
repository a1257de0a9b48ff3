"""A hub model is refused before its job is queued, as any other; a hub in trouble refuses none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from huggingface_hub import constants

from elder_core.inspection import Sources
from elder_service.settings import Settings
from tests.fake_hub import MODEL, FakeHub, serving
from tests.unit.api.calls import JOB, refuse, submit

HUB_JOB: dict[str, Any] = {**JOB, "model": {"id": MODEL}}
WEIGHTS = "model.safetensors"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"hub_look_seconds": 20})


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """It has the bundled model of 16 layers."""
    folder = tmp_path / "hub"
    folder.mkdir()
    bundled = Sources().builtin_root / "manuals-16l"
    (folder / "config.json").write_bytes((bundled / "config.json").read_bytes())
    (folder / WEIGHTS).symlink_to(bundled / WEIGHTS)
    with serving(folder) as server:
        yield server


def queued(client: TestClient) -> list[Any]:
    return list(client.get("/v1/jobs").json()["data"])


def test_a_good_model_is_taken_and_no_weights_are_fetched(client: TestClient, hub: FakeHub) -> None:
    job = submit(client, model={"id": MODEL, "revision": "main"})
    assert job["spec"]["model"] == {"id": MODEL, "revision": "main"}  # which commit that is, its worker will see
    assert hub.asked
    assert hub.sent_bytes < 200_000


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"model_type": "diffllama"}, "unsupported_architecture"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "unsupported_architecture"),
        ({"quantization_config": {"bits": 4}}, "quantized_checkpoint"),
        ({"num_hidden_layers": 0}, "config_mismatch"),
        ({"num_hidden_layers": 15}, "config_mismatch"),  # which only the headers of the weights show
    ],
)
def test_a_model_that_cannot_be_used(client: TestClient, hub: FakeHub, config: dict[str, Any], code: str) -> None:
    hub.edit_config(**config)
    problem = refuse(client, HUB_JOB)
    assert (problem["code"], problem["errors"][0]["loc"]) == (code, ["model", "id"])
    assert queued(client) == []


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def cut_short(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(content[:-1])


def shard_missing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (pickled, "pickled_weights"),
        (adapter, "adapter_only"),
        (no_config, "invalid_checkpoint"),
        (broken_config, "invalid_checkpoint"),
        (cut_short, "invalid_checkpoint"),
        (shard_missing, "shard_missing"),
    ],
)
def test_files_that_cannot_be_used(client: TestClient, hub: FakeHub, change: Callable[[Path], None], code: str) -> None:
    change(hub.folder)
    problem = refuse(client, HUB_JOB)
    assert (problem["code"], problem["errors"][0]["loc"]) == (code, ["model", "id"])


@pytest.mark.parametrize(
    ("change", "code", "loc"),
    [
        ({"ratio": None, "layers": [16]}, "layers_out_of_range", ["layers", 0]),
        ({"ratio": None, "layers_to_remove": 16}, "no_layer_left", ["layers_to_remove"]),
        ({"ratio": 0.01}, "invalid_ratio", ["ratio"]),
        ({"ratio": None, "target": {"max_bytes": 1_000_000}}, "target_unreachable", ["target", "max_bytes"]),
        ({"ratio": None, "target": {"max_bytes": 10**9}}, "target_already_met", ["target", "max_bytes"]),
        ({"calibration": {"sequence_length": 4096}}, "sequence_too_long", ["calibration", "sequence_length"]),
    ],
)
def test_a_job_that_does_not_fit_the_model(
    client: TestClient, hub: FakeHub, change: dict[str, Any], code: str, loc: list[str | int]
) -> None:
    problem = refuse(client, {**HUB_JOB, **change})
    assert (problem["code"], problem["errors"][0]["loc"]) == (code, loc)


@pytest.mark.parametrize(
    ("model", "loc", "says"),
    [
        ({"id": "team/other"}, ["model", "id"], "no model team/other"),
        ({"id": "team/a--b"}, ["model", "id"], "no model team/a--b"),
        ({"id": MODEL, "revision": "v9"}, ["model", "revision"], "no revision 'v9'"),
    ],
)
def test_a_model_that_is_not_there(
    client: TestClient, hub: FakeHub, model: dict[str, str], loc: list[str], says: str
) -> None:
    problem = refuse(client, {**HUB_JOB, "model": model})
    assert (problem["code"], problem["errors"][0]["loc"]) == ("model_not_found", loc)
    assert says in problem["detail"]


Answer = tuple[int, dict[str, str]]
HIDDEN: list[Answer] = [
    (403, {"X-Error-Code": "GatedRepo"}),
    (401, {"X-Error-Code": "GatedRepo"}),
    (401, {"X-Error-Code": "RepoNotFound"}),
    (401, {}),
    (403, {"X-Error-Message": "No."}),
]


@pytest.mark.parametrize("what", ["failure", "file_failure"])
@pytest.mark.parametrize("answer", HIDDEN)
def test_a_model_that_is_not_shown(
    client: TestClient, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, what: str, answer: Answer
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    setattr(hub, what, answer)
    problem = refuse(client, HUB_JOB)
    assert (problem["code"], problem["errors"][0]["loc"]) == ("model_not_found", ["model", "id"])
    assert "HF_TOKEN" in problem["detail"]


@pytest.mark.parametrize("what", ["failure", "file_failure"])
@pytest.mark.parametrize("answer", HIDDEN)
def test_without_a_token_it_is_left_to_a_worker_which_may_have_one(
    client: TestClient, hub: FakeHub, caplog: pytest.LogCaptureFixture, what: str, answer: Answer
) -> None:
    setattr(hub, what, answer)
    submit(client, **HUB_JOB)
    assert "set HF_TOKEN for the API, too" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"X-Error-Code": "RepoNotFound"}),
        (404, {}),
        (403, {"X-Error-Message": "Access to this resource is disabled."}),
    ],
)
def test_what_is_not_there_for_anybody_is_refused_without_a_token(
    client: TestClient, hub: FakeHub, answer: Answer
) -> None:
    hub.failure = answer
    assert refuse(client, HUB_JOB)["code"] == "model_not_found"


def test_a_model_that_is_too_large_to_be_looked_at(
    client: TestClient, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.edit_config(model_type="diffllama", padding="x" * 30_000_000)
    submit(client, **HUB_JOB)
    assert "too large to be looked at here" in caplog.text


@pytest.mark.parametrize("what", ["failure", "file_failure"])
@pytest.mark.parametrize(("status", "says"), [(429, "status 429"), (500, "status 500"), (503, "status 503")])
def test_a_hub_in_trouble_refuses_no_job(
    client: TestClient, hub: FakeHub, caplog: pytest.LogCaptureFixture, what: str, status: int, says: str
) -> None:
    setattr(hub, what, (status, {}))
    assert submit(client, **HUB_JOB)["status"] == "queued"
    assert "team/model is queued without a look at it" in caplog.text
    assert says in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        "<html>Café".encode("latin-1"),
        b"[]",
        b'{"error": "login"}',
        b'{"id": "team/model", "siblings": [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]}',
        b'{"id": "team/model", "sha": 1, "siblings": [{"rfilename": "config.json"}]}',
        b'{"id": "team/model", "sha": "0123", "siblings": ["config.json"]}',
        b'{"id": "team/model", "sha": "0123", "siblings": [{"rfilename": 1}]}',
        b"[" * 200_000,
    ],
    ids=["nothing", "latin-1", "list", "login", "no commit", "odd commit", "odd files", "odd names", "deep"],
)
def test_nor_does_a_proxy_that_answers_in_its_stead(
    client: TestClient, hub: FakeHub, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    hub.failure, hub.failure_body = (200, {}), body
    submit(client, **HUB_JOB)
    assert "it, or a proxy on the way," in caplog.text


def test_nor_one_that_is_down(
    client: TestClient, hub: FakeHub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    submit(client, **HUB_JOB)
    assert "team/model is queued without a look at it" in caplog.text


def test_offline_the_hub_is_not_asked(
    client: TestClient, hub: FakeHub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    submit(client, **HUB_JOB)
    assert "offline mode is enabled" in caplog.text
    assert hub.asked == []


class TestInTime:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"hub_look_seconds": 0.2})

    def test_a_slow_hub_is_not_waited_for(
        self, client: TestClient, hub: FakeHub, caplog: pytest.LogCaptureFixture
    ) -> None:
        hub.answering.clear()
        submit(client, **HUB_JOB)
        assert "team/model is queued without a look at it" in caplog.text


def test_meanwhile_others_are_answered(client: TestClient, hub: FakeHub) -> None:
    hub.answering.clear()
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(submit, client, **HUB_JOB)
        while not hub.asked:
            time.sleep(0.01)
        assert client.get("/livez").status_code == 200
        assert queued(client) == []
        hub.answering.set()
        assert submitted.result()["status"] == "queued"


def test_a_refused_model_does_not_use_up_the_key(client: TestClient, hub: FakeHub) -> None:
    key = {"Idempotency-Key": "abc"}
    hub.failure = (404, {"X-Error-Code": "RepoNotFound"})
    refuse(client, HUB_JOB, 422, **key)
    hub.failure = None
    assert client.post("/v1/jobs", json=HUB_JOB, headers=key).status_code == 201


@pytest.mark.parametrize(
    "failure", [(404, {"X-Error-Code": "RepoNotFound"}), (403, {"X-Error-Code": "GatedRepo"}), (503, {})]
)
def test_a_job_is_given_again_without_a_look(
    client: TestClient, hub: FakeHub, failure: tuple[int, dict[str, str]]
) -> None:
    key = {"Idempotency-Key": "abc"}
    first = client.post("/v1/jobs", json=HUB_JOB, headers=key).json()
    hub.failure = failure
    hub.asked.clear()
    again = client.post("/v1/jobs", json=HUB_JOB, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    other = refuse(client, {**HUB_JOB, "ratio": 0.5}, 422, **key)
    assert other["code"] == "idempotency_mismatch"
    assert hub.asked == []


def test_the_form_says_it_beside_the_field(client: TestClient, hub: FakeHub) -> None:
    hub.edit_config(quantization_config={"bits": 4})
    typed = {"model.id": MODEL, "method.name": "shortgpt", "target": "ratio", "ratio": "0.25"}
    page = client.post("/jobs/new", data=typed, headers={"Sec-Fetch-Site": "same-origin"})
    assert page.status_code == 422
    assert "this checkpoint is quantised" in page.text
