"""The API's share of maintenance: what no worker is there to end is ended all the same."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync

from api.dependencies import Services
from elder_service.jobs import reconcile
from elder_service.repeat import Repeat


@asynccontextmanager
async def reconciling(services: Services) -> AsyncIterator[None]:
    """Settle lost attempts and missed deadlines at intervals, as workers do. Sends no hints: those who could take one
    look for themselves."""
    stop = threading.Event()
    timer = Repeat("settle", services.settings.maintenance_seconds, stop, lambda: settle(services))
    timer.start()
    try:
        yield
    finally:
        stop.set()
        await run_sync(timer.join)


def settle(services: Services) -> None:
    with services.sessions.begin() as session:
        reconcile.settle(session, services.settings.retry_delay_seconds)
