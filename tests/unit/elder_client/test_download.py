"""Downloads: whole, verified, resumed, and never outside the folder."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from elder_client.download import DownloadProgress, safe_target
from elder_client.errors import ChecksumMismatch, DownloadFailed, NotFound, UnsafeArtifactName
from tests.unit.elder_client.scripted import (
    JOB,
    Caller,
    Pieces,
    Script,
    artifact,
    artifact_list,
    part,
    refusal,
)

CONTENT = bytes(range(256)) * 8
RESET = httpx2.ReadError("connection reset")


def listed(content: bytes = CONTENT, name: str = "model/w.bin") -> httpx2.Response:
    return artifact_list(artifact(name, content))


def broken_after(size: int) -> httpx2.Response:
    return httpx2.Response(200, stream=Pieces(CONTENT[:size], RESET))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_written_where_their_names_say(call: Caller, tmp_path: Path) -> None:
    files = [artifact("report.json", b"{}"), artifact("model/empty", b"")]
    script = Script([artifact_list(*files), httpx2.Response(200, content=b"{}")])
    seen: list[DownloadProgress] = []
    paths = call(script, "download", JOB, tmp_path / "new" / "out", on_progress=seen.append)
    assert files_in(tmp_path / "new" / "out") == {"report.json": b"{}", "model/empty": b""}
    assert paths == [tmp_path / "new" / "out" / "report.json", tmp_path / "new" / "out" / "model/empty"]
    assert seen[-1].done_bytes == seen[-1].total_bytes == 2
    assert script.requests[1].url.query == b"expires=1&signature=s"
    assert script.requests[1].headers["accept-encoding"] == "identity"


def test_only_the_files_asked_for_are_fetched(call: Caller, tmp_path: Path) -> None:
    script = Script([artifact_list(artifact("a", b"1"), artifact("b", b"2")), httpx2.Response(200, content=b"2")])
    call(script, "download", JOB, tmp_path, names={"b"})
    assert files_in(tmp_path) == {"b": b"2"}


def test_a_broken_download_goes_on_where_it_stopped(call: Caller, tmp_path: Path) -> None:
    script = Script([listed(), broken_after(100), httpx2.ConnectError("refused"), part(CONTENT, 100)])
    call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {"model/w.bin": CONTENT}
    assert [request.headers.get("range") for request in script.requests[1:]] == [None, "bytes=100-", "bytes=100-"]


def test_a_connection_that_closes_early_without_an_error_is_resumed(call: Caller, tmp_path: Path) -> None:
    script = Script([listed(), httpx2.Response(200, content=CONTENT[:10]), part(CONTENT, 10)])
    call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {"model/w.bin": CONTENT}


def test_a_part_of_an_earlier_run_is_resumed(call: Caller, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(CONTENT[:500])
    script = Script([listed(name="w.bin"), part(CONTENT, 500)])
    call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {"w.bin": CONTENT}


def test_a_server_without_range_sends_all_again(call: Caller, tmp_path: Path) -> None:
    script = Script([listed(), broken_after(100), httpx2.Response(200, content=CONTENT)])
    call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {"model/w.bin": CONTENT}


@pytest.mark.parametrize("leftover", [b"x" * 500, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_a_part_of_something_else_is_found_out(call: Caller, tmp_path: Path, leftover: bytes) -> None:
    (tmp_path / "w.bin.part").write_bytes(leftover)
    rest = [part(CONTENT, 500)] if len(leftover) == 500 else []
    script = Script([listed(name="w.bin"), *rest, httpx2.Response(200, content=CONTENT)])
    call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {"w.bin": CONTENT}


def test_a_file_already_there_is_kept_and_a_wrong_one_replaced(call: Caller, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"right")
    (tmp_path / "b").write_bytes(b"wrong")
    files = [artifact("a", b"right"), artifact("b", b"other")]
    script = Script([artifact_list(*files), httpx2.Response(200, content=b"other")])
    call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {"a": b"right", "b": b"other"}


def test_other_bytes_than_listed_are_refused(call: Caller, tmp_path: Path) -> None:
    wrong = bytes(len(CONTENT))
    script = Script([listed(), httpx2.Response(200, content=wrong), httpx2.Response(200, content=wrong)])
    with pytest.raises(ChecksumMismatch, match=r"model/w\.bin arrived twice"):
        call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {}


def test_what_arrived_is_kept_when_the_connection_stays_broken(call: Caller, tmp_path: Path) -> None:
    script = Script([listed(), broken_after(100), *[httpx2.ConnectError("refused")] * 2])
    with pytest.raises(DownloadFailed, match="Only 100 of 2048 bytes"):
        call(script, "download", JOB, tmp_path, attempts=3)
    assert files_in(tmp_path) == {"model/w.bin.part": CONTENT[:100]}


def test_tries_that_bring_bytes_do_not_count_as_failed(call: Caller, tmp_path: Path) -> None:
    def piece(request: httpx2.Request) -> httpx2.Response:
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        headers = {"content-range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"}
        status = 206 if start else 200
        return httpx2.Response(status, headers=headers, stream=Pieces(CONTENT[start : start + 256], RESET))

    call(Script([listed(), *[piece] * 8]), "download", JOB, tmp_path, attempts=2)
    assert files_in(tmp_path) == {"model/w.bin": CONTENT}


def test_an_expired_link_is_renewed(call: Caller, tmp_path: Path) -> None:
    fresh = artifact_list(artifact("model/w.bin", CONTENT, download_url="http://elder.test/files/fresh"))
    script = Script([listed(), broken_after(100), refusal(403, "link_expired"), fresh, part(CONTENT, 100)])
    call(script, "download", JOB, tmp_path)
    assert files_in(tmp_path) == {"model/w.bin": CONTENT}
    assert script.paths[-1] == "GET /files/fresh"


def test_a_refused_download_is_an_error(call: Caller, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        call(Script([listed(), refusal(404, "artifact_not_found")]), "download", JOB, tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "", ".", "..", "a\\..\\x", "C:/x", "C:x", "a\0b", "link/x"]
)
def test_no_name_leaves_the_folder(call: Caller, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    script = Script([artifact_list(artifact("fine", b"1"), artifact(name, b"2"))])
    with pytest.raises(UnsafeArtifactName):
        call(script, "download", JOB, folder)
    assert files_in(folder) == {}


def test_ordinary_names_are_safe(tmp_path: Path) -> None:
    assert safe_target(tmp_path, "model/a..b/.hidden") == tmp_path / "model" / "a..b" / ".hidden"
