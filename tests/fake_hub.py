"""A small server that speaks the part of the model hub's protocol that its real client uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "team/model"
AGENTS = "/api/agent-harnesses"  # asked for with telemetry; the answer is one that breaks the client, as a mirror's may

Headers = dict[str, str]


class FakeHub(ThreadingHTTPServer):
    """One model, `team/model`, whose only commit is COMMIT and whose files are those in `folder`.

    `failure`, if there is one, is the answer to every request, with the body `failure_body`, and `file_failure` to
    those for a file. `ranges`: parts of files are given. `lengths`: an answer says how long it is. `answering`, while
    it is clear, keeps every caller waiting. `asked` are the paths of all requests, `tokens` how each says who asks, and
    `sent_bytes` what has gone out in answer.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.failure: tuple[int, Headers] | None = None
        self.failure_body = b""
        self.file_failure: tuple[int, Headers] | None = None
        self.ranges = True
        self.lengths = True
        self.answering = threading.Event()
        self.answering.set()
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.sent_bytes = 0

    def edit_config(self, **changes: object) -> None:
        path = self.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def handle_error(self, *_: object) -> None:
        """Say nothing: a caller may hang up as it likes."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("authorization"))
        self.server.asked.append(self.path)
        self.server.answering.wait()
        path = self.path.partition("?")[0]
        if self.server.failure is not None:
            self.answer(*self.server.failure, self.server.failure_body)
        elif path == AGENTS:
            self.answer(200, body=b"[]")
        elif path == f"/api/models/{MODEL}":
            self.answer_info("main")
        elif not path.startswith((f"/api/models/{MODEL}/", f"/{MODEL}/")):
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{MODEL}/revision/"):
            self.answer_info(path.rpartition("/")[2])
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            self.answer(200, body=json.dumps([self.entry(file) for file in self.files()]).encode())
        elif self.server.file_failure is not None:
            self.answer(*self.server.file_failure)
        else:
            self.answer_file(path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer_info(self, revision: str) -> None:
        if revision not in ("main", COMMIT):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": self.name_of(file)} for file in self.files()]
        return self.answer(200, body=json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode())

    def answer_file(self, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        asked = self.headers.get("range")
        if asked is None or not self.server.ranges:
            return self.answer(200, headers, content)
        if not content:
            return self.answer(416)
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        told = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        return self.answer(206, headers | told, part)

    def answer(self, status: int, headers: Headers | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        length = {"Content-Length": str(len(body))} if self.server.lengths else {}
        for name, value in {**length, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.server.sent_bytes += len(body)

    def files(self) -> list[Path]:
        return sorted(file for file in self.server.folder.rglob("*") if file.is_file())

    def name_of(self, file: Path) -> str:
        return file.relative_to(self.server.folder).as_posix()

    def entry(self, file: Path) -> dict[str, object]:
        name = self.name_of(file)
        return {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[FakeHub]:
    """The hub that the client knows is one of our own, and no token is known, for as long as this lasts."""
    with FakeHub(folder) as server, pytest.MonkeyPatch.context() as patch:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        patch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.answering.set()
            server.shutdown()
            thread.join()
            close_session()
