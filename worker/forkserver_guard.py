"""The first module that the fork server imports: from here on it ends with the worker, however that ends.

It is a module with an effect because preloaded modules are all of ours that runs in that process. Without it, a server
that is busy importing torch, which takes seconds, looks at nothing and stays behind when the worker is gone.
"""

from __future__ import annotations

import os
import signal

from elder_service.processes import die_with_parent
from worker.forkserver import WORKER_PID

if WORKER_PID in os.environ:
    # Ctrl-C reaches the whole group, and the SIGTERM of systemd or docker the whole service; the worker decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(int(os.environ[WORKER_PID]))
