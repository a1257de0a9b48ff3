"""Run the API under uvicorn, on a socket bound beforehand so that the printed address is the real one."""

from __future__ import annotations

import socket
import sys

import uvicorn

from api.embedded import EmbeddedWorker
from api.main import create_app
from elder_service.settings import Settings

STREAMS_END_SECONDS = 1  # open event streams are cut when the server stops


def run(settings: Settings, host: str, port: int, *, with_worker: bool) -> None:
    """Serve until SIGINT or SIGTERM."""
    listener = _bind(host, port)
    url = f"http://{host}:{listener.getsockname()[1]}"
    app = create_app(settings, worker=EmbeddedWorker(settings) if with_worker else None)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=STREAMS_END_SECONDS, server_header=False
    )
    print(f"Dashboard   {url}/\nAPI         {url}/docs\nData        {settings.data_dir}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        sys.exit(f"error: cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.")
    return listener
