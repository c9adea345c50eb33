"""A proxy before an S3 server that answers as busy, slow, cut short or stale ones do, at first."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

FAULTS = ("busy", "too many", "slow", "cut", "stale", "reset")
TIMES = 2
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class BadStore(http.server.ThreadingHTTPServer):
    """Passes requests on, but those that it spoils: the first two of each kind for each object.

    Args:
        endpoint: The address of the server.

    Attributes:
        fault: One of `FAULTS`; None to spoil nothing.
    """

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.server = urlsplit(endpoint).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fault: str | None = None
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @property
    def spoilt(self) -> int:
        """How many requests were spoilt."""
        return sum(min(times, TIMES) for times in self._asked.values())

    def spoils(self, method: str, path: str) -> str | None:
        """What is done to a request."""
        with self._lock:
            if self.fault is None:
                return None
            self._asked[method, path] += 1
            return self.fault if self._asked[method, path] <= TIMES else None

    def handle_error(self, request: object, address: object) -> None:
        """Nothing: clients close connections as they like."""


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BadStore

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.spoils(self.command, self.path)
        if fault in ("busy", "too many"):
            self._answer(503 if fault == "busy" else 429, {}, _BUSY)
            return
        if fault == "stale" and self.command in ("GET", "HEAD"):
            self._answer(404, {}, b"<Error><Code>NoSuchKey</Code><Message>not yet</Message></Error>")
            return
        if fault == "reset":  # after it was carried out
            self._ask(body)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "slow":
            threading.Event().wait(0.3)
        status, headers, content = self._ask(body)
        self._answer(status, headers, content, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.server.server, timeout=30)) as server:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the host too, which is signed
                server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _OURS}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return answer.status, kept, answer.read()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True


_OURS = {"content-length", "connection", "transfer-encoding", "date"}


@contextlib.contextmanager
def bad_store(endpoint: str) -> Iterator[BadStore]:
    """One, closed in the end."""
    with BadStore(endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
