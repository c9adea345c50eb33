"""A server of Azure Blob Storage (azurite) on a free port of this machine, for tests."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import hmac
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NO_AZURITE = "no azurite"
"""The reason of tests that are left out for want of it."""
ACCOUNT = "tensordbtest"
_VERSION = "2021-08-06"
# Ends the server when this process does, however that happens.
_GUARD = '"$@" </dev/null & pid=$!; cat >/dev/null; kill -9 $pid; wait $pid'


def azurite() -> list[str] | None:
    """The command that starts one: that of `make setup`, or of the PATH. None if there is none."""
    here = Path(sys.prefix) / "azurite/node_modules/.bin/azurite-blob"
    found = str(here) if here.exists() else shutil.which("azurite-blob")
    return None if found is None or shutil.which("node") is None else [found]


@dataclass(frozen=True)
class AzureServer:
    """A running server."""

    endpoint: str
    key: str

    @property
    def env(self) -> dict[str, str]:
        """The environment in which `az://container` means a container of this server."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }

    def make_container(self, name: str) -> str:
        """Make a container and return its URL."""
        self._ask("PUT", f"/{ACCOUNT}/{name}")
        return f"az://{name}"

    def _ask(self, method: str, path: str) -> None:
        date = dt.datetime.now(dt.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": _VERSION}
        named = "\n".join(f"{name}:{value}" for name, value in headers.items())
        text = f"{method}{chr(10) * 12}{named}\n/{ACCOUNT}{path}\nrestype:container"
        signed = hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()
        headers |= {"Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}", "Content-Length": "0"}
        url = f"{self.endpoint}{path}?restype=container"
        urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=10).close()


@contextlib.contextmanager
def azure_server(command: list[str], folder: Path, deadline: float = 60.0) -> Iterator[AzureServer]:
    """Run a server with its data in `folder` until the block ends.

    Raises:
        RuntimeError: It does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    server = AzureServer(f"http://127.0.0.1:{port}", key)
    options = [
        "--silent",
        "--skipApiVersionCheck",
        "--disableTelemetry",
        "--blobPort",
        str(port),
        "--location",
        str(folder),
    ]
    log = folder / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *command, *options],
            stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=folder,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
        )  # fmt: skip
    try:
        end = time.monotonic() + deadline
        while True:
            try:
                server.make_container("ready")
                break
            except (OSError, urllib.error.URLError) as error:
                if process.poll() is not None or time.monotonic() > end:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"expected azurite within {deadline} s, found {error}:\n{tail}") from error
                time.sleep(0.1)
        yield server
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
