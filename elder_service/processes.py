"""Small things about processes that the standard library lacks."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, however it dies; does nothing but on Linux.

    The kernel looks at the thread that forked this process: it must live as long as the parent is to be there.
    `parent` is the parent's id where that is known. It tells a parent that died before this call, while this process
    was still starting; otherwise only one that dies during the call is noticed.
    """
    parent = parent or os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "prctl"):
        return
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
