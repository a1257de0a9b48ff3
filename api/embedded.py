"""The worker of `elder-server serve`: a process of its own, watched over by the API's lifespan."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from elder_service.settings import Settings

STOP_SECONDS = 4.0  # beside ELDER_DRAIN_SECONDS, for what the worker does around that
RESTART_FIRST_SECONDS = 0.5
RESTART_MOST_SECONDS = 30.0
HEALTHY_SECONDS = 60.0

_log = logging.getLogger(__name__)


class EmbeddedWorker:
    """Starts the worker, starts it again with back-off when it dies, and stops it. It dies with this process."""

    def __init__(self, settings: Settings, command: Sequence[str | Path] | None = None) -> None:
        # The worker sees the settings that this process has, wherever they came from.
        self._environment = {**os.environ, **_as_environment(settings)}
        self._stop_seconds = settings.drain_seconds + STOP_SECONDS
        self._command = command or (sys.executable, "-m", "elder_service", "worker", "--parent", str(os.getpid()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        keeper = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper

    async def _keep(self) -> None:
        delay = RESTART_FIRST_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            ending = await self._run_once()
            if loop.time() - started > HEALTHY_SECONDS:
                delay = RESTART_FIRST_SECONDS
            _log.error("the worker %s; starting it again in %.1f s", ending, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_MOST_SECONDS)

    async def _run_once(self) -> str:
        """One life of the worker, to its end; returns how it ended."""
        try:
            process = await self._start()
        except OSError as error:  # no memory, too many processes or files: it may pass
            return f"could not be started ({error})"
        try:
            return f"ended with status {await process.wait()}"
        finally:
            await self._stop(process)

    async def _start(self) -> Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches the API alone, which then stops the worker
        )

    async def _stop(self, process: Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_seconds)
        except TimeoutError:
            process.kill()
            await process.wait()


def _as_environment(settings: Settings) -> dict[str, str]:
    values = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, tuple):
            value = ",".join(map(str, value))
        values[f"ELDER_{name.upper()}"] = str(value)
    return values
