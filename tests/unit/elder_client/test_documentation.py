"""docs/client.md names everything that callers meet."""

from __future__ import annotations

from pathlib import Path

import typer

from elder_client import cli, errors

TEXT = (Path(__file__).parents[3] / "docs" / "client.md").read_text("utf-8")


def test_every_command_is_documented() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert [name for name in commands if f"`elder {name}" not in TEXT] == []


def test_every_exit_status_is_documented() -> None:
    statuses = [value for name, value in vars(cli).items() if name.startswith("EXIT_")]
    assert [status for status in [0, *statuses] if f"| {status} |" not in TEXT] == []


def test_every_error_is_documented_and_drawn() -> None:
    names = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [name for name in names if f"`{name}`" not in TEXT] == []
    assert [name for name in names if name not in (errors.__doc__ or "")] == []
