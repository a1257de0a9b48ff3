"""Tokens kept on disk: found again, never for another text or tokenizer, and made again where they are damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from elder_core import cache_folder, checkpoints
from elder_core.cache_folder import UNFINISHED_PREFIX, UNUSED_SECONDS, remove_unused, user_cache
from elder_core.calibration import token_cache
from elder_core.calibration.token_cache import TokenCache
from elder_core.calibration.windows import token_stream
from elder_core.errors import TextEmpty
from elder_core.inspection import Sources
from elder_core.spec import ModelRef

DOCUMENTS = ["the first document", "the second"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts that were really tokenised."""
    texts: list[list[str]] = []

    def counting(documents: list[str], *given: object, **named: object) -> torch.Tensor:
        texts.append(list(documents))
        return token_stream(documents, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(token_cache, "token_stream", counting)
    return texts


@pytest.fixture
def cut(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., torch.Tensor]:
    def stream(documents: list[str] = DOCUMENTS, tokenizer_hash: str = "t") -> torch.Tensor:
        return TokenCache(tmp_path / "tokens").stream(documents, tiny_tokenizer, tokenizer_hash, field="calibration")

    return stream


def test_the_second_time_nothing_is_tokenised(
    cut: Callable[..., torch.Tensor], made: list[list[str]], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second = cut(), cut()
    assert len(made) == 1
    assert torch.equal(first, second)
    assert torch.equal(first, token_stream(DOCUMENTS, tiny_tokenizer))
    assert first.dtype == second.dtype == torch.int64
    assert [file.suffix for file in (tmp_path / "tokens").iterdir()] == [".safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"documents": ["the first document", "the second."]},
        {"documents": ["the first documentt", "he second"]},
        {"documents": [*reversed(DOCUMENTS)]},
        {"tokenizer_hash": "u"},
    ],
)
def test_what_differs_is_made_anew(
    cut: Callable[..., torch.Tensor], made: list[list[str]], change: dict[str, object]
) -> None:
    cut()
    cut(**change)
    assert len(made) == 2


@pytest.mark.parametrize("version", ["CUTTING_VERSION", "LIBRARIES"])
def test_another_version_makes_anew(
    cut: Callable[..., torch.Tensor], made: list[list[str]], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    cut()
    monkeypatch.setattr(token_cache, version, 2 if version == "CUTTING_VERSION" else ("torch",))
    cut()
    assert len(made) == 2


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [flipped, lambda content: content[:-5], lambda _: b"", lambda content: b"\xff" * len(content)]
)
def test_a_damaged_file_is_made_again(
    cut: Callable[..., torch.Tensor],
    made: list[list[str]],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = cut()
    (file,) = (tmp_path / "tokens").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(cut(), expected)
    assert len(made) == 2
    assert "made again" in caplog.text
    assert file.read_bytes() == whole


def test_a_text_without_a_token_is_refused_and_not_kept(cut: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(TextEmpty):
        cut(documents=[""])
    assert not (tmp_path / "tokens").exists()


def test_a_folder_that_cannot_be_written_costs_no_run(
    cut: Callable[..., torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokens").write_text("a file where the folder should be")
    assert len(cut()) > 0
    assert "not kept" in caplog.text


def test_a_write_that_fails_leaves_nothing(
    cut: Callable[..., torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, __: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    cut()
    assert list((tmp_path / "tokens").iterdir()) == []


def test_no_folder_keeps_nothing(made: list[list[str]], tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    for _ in range(2):
        TokenCache(None).stream(DOCUMENTS, tiny_tokenizer, "t", field="calibration")
    assert len(made) == 2


def test_the_hash_of_a_tokenizer_is_that_of_its_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def hashed(folder: Path) -> str:
        resolved = checkpoints.resolve(ModelRef(id=str(folder)), Sources(allow_paths=True))
        return checkpoints.tokenizer_hash(resolved)

    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "README.md").write_text("no part of it")
    assert hashed(copy) == hashed(tiny_checkpoint)
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + "\n")
    assert hashed(copy) != hashed(tiny_checkpoint)


# How what nobody uses leaves --------------------------------------------------------------------------------------


def age(file: Path, seconds: float) -> None:
    then = file.stat().st_mtime - seconds
    os.utime(file, (then, then))


def test_what_is_used_stays_and_what_is_not_leaves(cut: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    cut()
    (used,) = folder.iterdir()
    cut(documents=["other"])
    (unused,) = set(folder.iterdir()) - {used}
    for file in (used, unused):
        age(file, UNUSED_SECONDS + 60)
    cut()  # marks it as used
    remove_unused(folder)
    assert list(folder.iterdir()) == [used]
    age(used, UNUSED_SECONDS - 60)
    remove_unused(folder)
    assert list(folder.iterdir()) == [used]
    age(used, 120)
    cut(documents=["a third"])  # whoever writes tidies up
    assert used not in set(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (f"{'0a' * 32}.safetensors", True),
        (f"{UNFINISHED_PREFIX}k3_x", True),
        ("model.safetensors", False),
        (f"{'0a' * 32}.safetensors.bak", False),
        (f"{'0A' * 32}.safetensors", False),
        (".gitignore", False),
        ("notes.txt", False),
    ],
)
def test_only_files_of_our_own_are_removed(tmp_path: Path, name: str, ours: bool) -> None:
    (tmp_path / name).touch()
    age(tmp_path / name, UNUSED_SECONDS + 60)
    remove_unused(tmp_path)
    assert (tmp_path / name).exists() is not ours


def test_what_a_killed_writer_leaves_is_removed_later(
    cut: Callable[..., torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Path, **__: bool) -> None:
        raise OSError("gone")

    with monkeypatch.context() as ending:
        ending.setattr(Path, "replace", killed)
        ending.setattr(Path, "unlink", killed)
        cut()
    (left,) = (tmp_path / "tokens").iterdir()
    age(left, UNUSED_SECONDS + 60)
    remove_unused(tmp_path / "tokens")
    assert not left.exists()


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_unused(tmp_path / "nowhere")


def test_where_the_command_line_keeps_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELDER_CACHE", "/somewhere")
    assert user_cache() == Path("/somewhere")
    monkeypatch.delenv("ELDER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert user_cache() == Path("/xdg/elder")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache_folder.Path, "home", lambda: tmp_path)
    assert user_cache() == tmp_path / ".cache/elder"
