"""`db.ui()`: the page of a warehouse, in a process of its own that ends with this one."""

from __future__ import annotations

import contextlib
import html
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tensordb_data.errors import ConnectError, MissingExtraError, QueryError

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_TOKEN_BYTES = 24  # 192 bits
_PATIENCE = 10.0  # seconds that the process has to end
_NEEDED = ("starlette", "uvicorn", "jinja2")


class Ui:
    """A page that is being served. A notebook shows it as a link.

    It runs until `close()`, or until this process ends.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str, token: str) -> None:
        self._process, self._address, self._token = process, address, token
        self._redirect: Path | None = None

    def _show(self) -> None:
        """Open the page in the browser. Its command line has a private file that leads there, and not the token."""
        handle, path = tempfile.mkstemp(prefix="tensordb-", suffix=".html")
        self._redirect = Path(path)
        with os.fdopen(handle, "w") as file:
            file.write(f'<meta http-equiv="refresh" content="0;url={html.escape(self.url)}">')
        webbrowser.open(self._redirect.as_uri())

    @property
    def url(self) -> str:
        """The address that opens the page. Whoever knows it can read the warehouse."""
        return f"{self._address}?token={self._token}"

    def close(self) -> None:
        """End the page. A second call does nothing."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._redirect is not None:
            self._redirect.unlink(missing_ok=True)

    def embed(self, height: int = 800) -> Embedded:
        """The page within a cell of a notebook. This needs a proxy that makes it part of the notebook's own origin."""
        return Embedded(self.url, height)

    def __enter__(self) -> Ui:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Ui {self._address}>"

    def _repr_html_(self) -> str:
        link = html.escape(self.url)
        return f'<p><a href="{link}" target="_blank" rel="noopener">The page of the warehouse</a> ({self._address})</p>'


class Embedded:
    """A frame with a page, for a notebook to show."""

    def __init__(self, url: str, height: int) -> None:
        self._url, self._height = url, int(height)

    def __repr__(self) -> str:
        return f"<Embedded {self._url.partition('?')[0]}>"

    def _repr_html_(self) -> str:
        return f'<iframe src="{html.escape(self._url)}" width="100%" height="{self._height}"></iframe>'


def open_window(warehouse: Warehouse, port: int, write: bool, open: bool, hosts: Sequence[str]) -> Ui:
    """See `TensorDB.ui`."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65_536:
        raise QueryError(f"ui: port is a whole number from 0 to 65,535; found {port!r:.100}")
    if isinstance(hosts, str) or not all(isinstance(name, str) and name for name in hosts):
        raise QueryError(f"ui: hosts is a list of names of hosts; found {hosts!r:.200}")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"the page needs {', '.join(missing)}: pip install 'tensordb-data[ui]'")
    public = os.environ.get("JUPYTERHUB_PUBLIC_URL", "")
    named = [*hosts, *filter(None, [urlsplit(public).hostname])]
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    given = {**warehouse.to_json(), "token": token, "port": port, "write": write, "hosts": named}
    process = subprocess.Popen(
        [sys.executable, "-m", "tensordb_data.ui"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        told = _told(process, given)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if public:
        # The proxy of Jupyter brings the browser to a port of this machine.
        told["address"] = f"{public.rstrip('/')}/proxy/{urlsplit(told['address']).port}/"
    found = Ui(process, told["address"], token)
    if open and not public and _has_screen():
        found._show()
    return found


def _told(process: subprocess.Popen[bytes], given: dict[str, Any]) -> dict[str, Any]:
    """What the process answers, once it can be asked for pages. The token must not be in its command line."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(given).encode() + b"\n")
        process.stdin.flush()
        told: dict[str, Any] = json.loads(process.stdout.readline() or b"{}")
    except (OSError, ValueError):
        told = {}
    if "address" not in told:
        raise ConnectError(f"the page could not be served: {told.get('error', 'its process has ended; see above')}")
    return told


def _has_screen() -> bool:
    """Whether a browser can be seen. One in a terminal would take it over."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
