"""An endpoint for Prometheus on the loopback interface, in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tensordb_data.common.telemetry.exposition import CONTENT_TYPE
from tensordb_data.errors import ConnectError

_HOSTS = ("127.0.0.1", "localhost")
_SECONDS = 10.0


@contextlib.contextmanager
def serving(port: int, text: Callable[[], str]) -> Iterator[int]:
    """Answer `GET /metrics` at 127.0.0.1 until the block ends.

    Args:
        port: The port; 0 for a free one.
        text: What is answered; called for each request, in a thread of its own.

    Returns:
        The port.

    Raises:
        ConnectError: The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS  # for a client that sends nothing

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host.lower() not in _HOSTS:  # a page in a browser, under a name that leads here
                self._answer(421, "421: ask for 127.0.0.1\n", "text/plain")
            elif self.path.partition("?")[0] != "/metrics":
                self._answer(404, "404: there is only /metrics\n", "text/plain")
            else:
                self._answer(200, text(), CONTENT_TYPE)

        def _answer(self, status: int, body: str, kind: str) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)

        def version_string(self) -> str:
            return "tensordb"

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ConnectError(f"metrics cannot be served at 127.0.0.1, port {port}: {error.strerror or error}") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="tensordb-metrics", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
