"""A TCP proxy that can stop forwarding, drop its connections, or lose the answer to what passes through it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 65536


@dataclass
class Proxy:
    """Listens on `port` of 127.0.0.1 and forwards to `target`."""

    target: int
    port: int
    connections: int = 0
    lost_answers: int = 0
    _forwarding: threading.Event = field(default_factory=threading.Event)
    _open: list[socket.socket] = field(default_factory=list)
    _loses: tuple[bytes, bytes, bool] | None = None

    def freeze(self) -> None:
        """Take and give nothing more, with every connection open, as when a router between has forgotten them."""
        self._forwarding.clear()

    def thaw(self) -> None:
        self._forwarding.set()

    def drop(self) -> None:
        """Close every connection that is open now."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def lose_answer_after(self, first: bytes, then: bytes, *, delivered: bool) -> None:
        """Cut the next connection over which `first` and `then` are sent, with the latter.

        `delivered`: after it took effect, though nobody is told so; otherwise before.
        """
        self._loses = (first, then, delivered)

    # Within ----------------------------------------------------------------------------------------------------------

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            threading.Thread(target=self._connect, args=(client, server), daemon=True).start()

    def _connect(self, client: socket.socket, server: socket.socket) -> None:
        self._open += [client, server]
        cut = threading.Event()
        answers = threading.Thread(target=self._pump, args=(server, client, cut), daemon=True)
        with client, server:
            answers.start()
            self._pump(client, server, cut, asks=True)
            answers.join()

    def _pump(self, source: socket.socket, sink: socket.socket, cut: threading.Event, *, asks: bool = False) -> None:
        seen = False
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._forwarding.wait()
                loses = self._loses
                seen = seen or (asks and loses is not None and loses[0] in data)
                if seen and loses is not None and loses[1] in data:
                    self._loses = None
                    self.lost_answers += 1
                    cut.set()
                    if not loses[2]:
                        break
                if cut.is_set() and not asks:
                    break  # the answer has come, so what was asked is done; nobody is told
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Proxy(target, listener.getsockname()[1])
        made.thaw()
        threading.Thread(target=made.serve, args=(listener,), daemon=True).start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            made.thaw()
            made.drop()
