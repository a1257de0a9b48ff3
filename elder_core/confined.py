"""Names that callers give, turned into paths that cannot leave their root."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from elder_core.errors import PathForbidden


def below(root: Path, name: str, *, loc: tuple[str | int, ...]) -> Path | None:
    """The file or folder called `name` below `root`, resolved; None if there is none.

    Raises:
        PathForbidden: `name` is absolute, climbs with `..`, or resolves through a symbolic link to outside `root`.
    """
    check_name(name, loc=loc)
    if not name.strip("./"):
        return None
    try:
        found = (root / name).resolve()
        exists = found.exists()
    except (OSError, RuntimeError):  # too long a name; a loop of links
        return None
    if not found.is_relative_to(root.resolve()):
        raise PathForbidden(f"{name!r} leads outside its root through a symbolic link.", loc=loc)
    return found if exists else None


def check_name(name: str, *, loc: tuple[str | int, ...]) -> None:
    """Refuse a name that leads outside whatever it is joined to.

    Raises:
        PathForbidden: it is absolute, climbs with `..` or holds a control character.
    """
    if any(ord(character) < 32 for character in name):
        raise PathForbidden(f"{name!r} holds a control character.", loc=loc)
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or name.startswith("~"):
        raise PathForbidden(f"{name!r} is an absolute path; give a name below a configured root.", loc=loc)
    if ".." in name.replace("\\", "/").split("/"):
        raise PathForbidden(f"{name!r} climbs with '..'; give a name below a configured root.", loc=loc)


def check_links(folder: Path, root: Path, *, loc: tuple[str | int, ...]) -> None:
    """Refuse a folder with a file or folder in it that resolves to outside `root`.

    Raises:
        PathForbidden: there is one; the message names it.
    """
    resolved_root = root.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = Path(parent, name)
            if entry.is_symlink() and not entry.resolve().is_relative_to(resolved_root):
                raise PathForbidden(
                    f"{entry.relative_to(folder)} in {folder.name} is a symbolic link to outside its root.", loc=loc
                )
