"""A proxy before a MongoDB server that loses connections at chosen commands, before they are carried out or after."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import bson

_UNCOUNTED = {"hello", "isMaster", "ismaster", "ping", "endSessions", "abortTransaction", "killCursors", "buildInfo"}


class LossyProxy:
    """Listens on a port of 127.0.0.1 and passes everything on, but for the commands that it was told to lose.

    Args:
        uri: The address of the server.

    Attributes:
        uri: The address of the proxy.
        lost: The commands that were lost since `lose`.
        passed: How many passed before.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        host = unquote(parts.netloc)
        self._server = (host, None) if host.startswith("/") else (str(parts.hostname), parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._left, self._times, self._carried_out = -1, 0, False
        self.uri = f"mongodb://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}?directConnection=true&serverMonitoringMode=poll"
        self.lost: list[str] = []
        self.passed = 0
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def lose(self, command: int, *, times: int = 2, carried_out: bool = False) -> None:
        """Lose the connection at the next command but `command`, and at those after it.

        Args:
            command: How many commands pass before.
            times: How many are lost; a driver tries one again by itself.
            carried_out: Whether the server carries them out, so that only the answers are lost.
        """
        with self._lock:
            self._left, self._times, self._carried_out = command, times, carried_out
            self.lost, self.passed = [], 0

    def calm(self) -> None:
        """Lose nothing from now on."""
        with self._lock:
            self._left = -1

    def close(self) -> None:
        """End all connections and threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        threads = []
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threads.append(threading.Thread(target=self._serve, args=(client,)))
                threads[-1].start()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _serve(self, client: socket.socket) -> None:
        with client, self._connected() as server, contextlib.suppress(OSError, EOFError):
            self._open |= {client, server}
            try:
                while True:
                    request = _message(client)
                    losing = self._loses(request)
                    if losing is None:
                        return
                    server.sendall(request)
                    answer = _message(server)
                    if losing:
                        return
                    client.sendall(answer)
                    while _more_to_come(answer):
                        answer = _message(server)
                        client.sendall(answer)
            finally:
                self._open -= {client, server}

    def _connected(self) -> socket.socket:
        host, port = self._server
        if port is not None:
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(host)
        return server

    def _loses(self, request: bytes) -> bool | None:
        """Whether the answer to a request is lost; None if the request itself is."""
        name = _command(request)
        with self._lock:
            if name in _UNCOUNTED or self._left < 0:
                return False
            if self._left > 0:
                self._left -= 1
                self.passed += 1
                return False
            self.lost.append(name)
            if len(self.lost) >= self._times:
                self._left = -1
            return True if self._carried_out else None


@contextlib.contextmanager
def lossy(uri: str) -> Iterator[LossyProxy]:
    """A proxy, closed in the end."""
    proxy = LossyProxy(uri)
    try:
        yield proxy
    finally:
        proxy.close()


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 4)
    return head + _exactly(source, struct.unpack("<i", head)[0] - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not (more := source.recv(count - len(data))):
            raise EOFError
        data += more
    return bytes(data)


def _command(message: bytes) -> str:
    if struct.unpack_from("<i", message, 12)[0] != 2013:  # OP_MSG; the first greeting of a driver is another
        return "hello"
    (length,) = struct.unpack_from("<i", message, 21)
    return next(iter(bson.decode(message[21 : 21 + length])))


def _more_to_come(message: bytes) -> bool:
    return struct.unpack_from("<i", message, 12)[0] == 2013 and bool(struct.unpack_from("<I", message, 16)[0] & 2)
