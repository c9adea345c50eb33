"""The server of the page: a socket on the loopback interface, and uvicorn on it until it is told to end."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from tensordb_data.errors import ConnectError

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@dataclass(frozen=True)
class Certificate:
    """What makes traffic secret.

    Args:
        cert: The file of the certificate.
        key: The file of its key; None if it is in the same file.
    """

    cert: Path
    key: Path | None = None


def bind(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on. They wait until `run` answers them.

    Args:
        host: Name or number of an interface of this machine.
        port: The port; 0 for a free one.

    Raises:
        ConnectError: The port is taken, or there is no such interface.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(place)
            opened.listen(128)
        except BaseException:
            opened.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConnectError(f"the page cannot be served at {host}, port {port}: {reason}") from None
    return opened


def address_of(listening: socket.socket, host: str, *, secure: bool = False) -> str:
    """The address of the first page, without the token."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if secure else 'http'}://{name}:{listening.getsockname()[1]}/"


class Server(uvicorn.Server):
    """uvicorn that ends by itself when it is told to, where the original kills its process once more."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after the requests that are being answered; told once more, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def calm() -> None:
    """Let OpenCV use one thread a picture: pages ask for many at once, and others use this machine."""
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)


def make_server(app: ASGIApp, certificate: Certificate | None = None) -> Server:
    """A server for `run(sockets=[...])`. It keeps no log of requests: their addresses may hold the token."""
    config = uvicorn.Config(
        app, lifespan="off", access_log=False, log_config=None, proxy_headers=False, server_header=False, ws="none",
        timeout_graceful_shutdown=2, ssl_certfile=None if certificate is None else str(certificate.cert),
        ssl_keyfile=None if certificate is None or certificate.key is None else str(certificate.key),
    )  # fmt: skip
    return Server(config)
