"""The worker of `elder-server serve`: a process of its own, watched over by the API's lifespan."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from elder_service.settings import Settings

STOP_SECONDS = 8.0
RESTART_FIRST_SECONDS = 0.5
RESTART_MOST_SECONDS = 30.0
HEALTHY_SECONDS = 60.0

_log = logging.getLogger(__name__)


class EmbeddedWorker:
    """Starts the worker, starts it again with back-off when it dies, and stops it. It dies with this process."""

    def __init__(self, settings: Settings) -> None:
        # The worker sees the settings that this process has, wherever they came from.
        self._environment = {**os.environ, **_as_environment(settings)}

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
            process = await self._start()
            try:
                code = await process.wait()
            finally:
                await _stop(process)
            if loop.time() - started > HEALTHY_SECONDS:
                delay = RESTART_FIRST_SECONDS
            _log.error("the worker ended with status %d; starting it again in %.1f s", code, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_MOST_SECONDS)

    async def _start(self) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "elder_service",
            "worker",
            "--die-with-parent",
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches the API alone, which then stops the worker
        )


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def _as_environment(settings: Settings) -> dict[str, str]:
    values = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if name == "secret_key":
            value = value.get_secret_value()
        elif isinstance(value, tuple):
            value = ",".join(map(str, value))
        values[f"ELDER_{name.upper()}"] = str(value)
    return values
