"""What a page is made of: the warehouse that it reads, what was asked, and the templates."""

from __future__ import annotations

import functools
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from anyio import to_thread
from pymongo.errors import ExecutionTimeout, PyMongoError
from starlette.responses import HTMLResponse, JSONResponse, Response

from tensordb_data.api.database import TensorDB
from tensordb_data.common.patience import impatient
from tensordb_data.errors import ConnectError, NotFoundError, QueryError, ReadOnlyError, TensorDBError, TimeLimitError
from tensordb_data.mongo.errors import first_line
from tensordb_data.mongo.retry import within
from tensordb_data.ui import shown
from tensordb_data.ui.kept import Kept

if TYPE_CHECKING:
    from starlette.requests import Request

    from tensordb_data.ui.guard import Keys

HERE = Path(__file__).parent
SECONDS = 2.0
"""What one request may take of the database."""
_PING_SECONDS = 1.0
_TOGETHER = 4  # requests that ask the database at the same time
_SLOW = 2  # and others, which take as long as somebody waits
_THUMBS = 64_000_000  # bytes
_BLOBS = 128_000_000
_LONGEST = 8_000  # characters of what was asked for

_log = logging.getLogger("tensordb_data.ui")


@dataclass(frozen=True)
class Window:
    """One page server: what all its pages share.

    Args:
        reading: The warehouse, through a connection that only reads. All GET requests use it.
        writing: The warehouse for changes; None if the page allows none.
        keys: The secrets.
    """

    reading: TensorDB
    writing: TensorDB | None
    keys: Keys
    counted: dict[Any, Any] = field(default_factory=dict)
    """What was counted of datasets; see the first page."""
    thumbs: Kept = field(default_factory=lambda: Kept(_THUMBS))
    """Thumbnails that were sent."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What metrics tell, by project."""
    blobs: Kept = field(default_factory=lambda: Kept(_BLOBS))
    """Stored bytes of blobs that a page has shown."""
    late: dict[str, float] = field(default_factory=dict)
    """When the metrics of the runs of a project took too long to read."""
    slow: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(_SLOW))
    turns: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(_TOGETHER))

    @functools.cached_property
    def templates(self) -> jinja2.Environment:
        """The templates. Whatever is put into one is escaped, and a name that is not there is an error."""
        made = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        for name in (
            "number", "size", "time", "brief", "pretty", "text_of", "filter_text", "number_text", "rounded", "caption",
        ):  # fmt: skip
            made.filters[name] = getattr(shown, name)
        return made

    def redact(self, error: BaseException) -> str:
        """What an error says, without passwords."""
        return self.reading.warehouse.address.redact(first_line(error) if isinstance(error, Exception) else str(error))


@dataclass(frozen=True)
class View:
    """One request: what was asked, and how it is answered."""

    window: Window
    request: Request
    body: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def db(self) -> TensorDB:
        """The project that was asked for, to read."""
        return self._in_project(self.window.reading)

    @property
    def writing(self) -> TensorDB:
        """The project that was asked for, to change.

        Raises:
            ReadOnlyError: The page was opened to read.
        """
        if self.window.writing is None:
            raise ReadOnlyError("this page only reads; `tensordb ui --write` or db.ui(write=True) allows changes")
        return self._in_project(self.window.writing)

    def _in_project(self, db: TensorDB) -> TensorDB:
        project = self.one("project")
        return db if project in ("", db.project) else TensorDB.over(db.warehouse.in_project(project))

    def one(self, name: str) -> str:
        """A word of the query string; empty if it was not given.

        Raises:
            QueryError: It is too long.
        """
        found = self.request.query_params.get(name, "")
        if len(found) > _LONGEST:
            raise QueryError(f"{name}= has {len(found):,} characters, and at most {_LONGEST:,} are taken")
        return found

    def many(self, name: str, most: int = 200) -> list[str]:
        """All words of one name of the query string, each once.

        Raises:
            QueryError: There are more than `most`.
        """
        found = list(dict.fromkeys(each for each in self.request.query_params.getlist(name) if each))
        if len(found) > most:
            raise QueryError(f"{name}= was given {len(found)} times, and at most {most} times are taken")
        return found

    def whole(self, name: str, default: int, most: int) -> int:
        """A whole number of the query string, from 0 to `most`.

        Raises:
            QueryError: It is none.
        """
        text = self.one(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or int(text[:9]) > most or len(text) > 9:
            raise QueryError(f"{name}= is a whole number up to {most:,}; found {text[:50]!r}")
        return int(text)

    def link(self, page: str = "", **values: Any) -> str:
        """The address of a page, in the project that is shown."""
        project = self.db.project if self.db.project != self.window.reading.project else None
        return shown.address(page, {"project": project, **values})

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """The answer with a page. Asked for it again, it says if nothing has changed."""
        known = {
            "link": self.link, "project": self.db.project, "write": self.window.writing is not None,
            "csrf": self.window.keys.csrf, "place": str(self.window.reading.warehouse.address),
            "here": self.request.url.path.strip("/"), "words_given": self.one("words"),
            "other_project": self.db.project != self.window.reading.project,
        }  # fmt: skip
        text = self.window.templates.get_template(template).render(**known, **values)
        return self.tagged(HTMLResponse(text, status))

    def data(self, value: Any, status: int = 200) -> Response:
        """The answer with JSON."""
        return self.tagged(JSONResponse(value, status))

    def tagged(self, answer: Response) -> Response:
        """The answer, or only that nothing has changed since it was given."""
        tag = f'"{hashlib.blake2b(bytes(answer.body), digest_size=12).hexdigest()}"'
        if answer.status_code == 200 and self.request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        answer.headers["ETag"] = tag
        return answer

    def failed(self, error: BaseException) -> Response:
        """The answer that says what went wrong; of a fault of ours only its number, by which the log has the rest."""
        status, text = _said(self.window, error)
        if "text/html" in self.request.headers.get("accept", "") and self.request.method != "POST":
            if status == 503 and isinstance(error, (ConnectError, PyMongoError)):
                return self.window_page("away.html", status, text=text)
            return self.window_page("error.html", status, text=text, status=status)
        return JSONResponse({"error": text}, status)

    def window_page(self, template: str, code: int, **values: Any) -> Response:
        """A page that needs no database."""
        place = str(self.window.reading.warehouse.address)
        text = self.window.templates.get_template(template).render(place=place, **values)
        return HTMLResponse(text, code)


Handler = Callable[[View], Response]
"""What answers the requests for one page, in a thread."""


async def answer(handler: Handler, view: View, *, own_time: bool = False, slow: bool = False) -> Response:
    """Let a handler answer, while few others do.

    Args:
        handler: The handler.
        view: The request.
        own_time: Whether the handler itself sees to it that the database ends in time.
        slow: Whether that may take long, so that others must not wait for it.
    """
    return await to_thread.run_sync(_answered, handler, view, own_time or slow, slow)


def _answered(handler: Handler, view: View, own_time: bool, slow: bool) -> Response:
    with view.window.slow if slow else view.window.turns:
        began: float | None = None
        try:
            # What reads rides out an outage of the server for a minute. A page says at once that it is away.
            with within(_PING_SECONDS):
                view.window.reading.warehouse.index.database.command("ping")
            if view.request.method == "POST":  # a change is worth a wait for a server that is being elected
                return handler(view)
            began = time.monotonic()
            if own_time:
                with impatient():
                    return handler(view)
            with within(SECONDS):
                return handler(view)
        except Exception as error:
            took = 0.0 if began is None else time.monotonic() - began
            late = took >= SECONDS and timed_out(error) and not isinstance(error, TimeLimitError)
            return view.failed(TimeoutError(_LATE.format(took)) if late else error)


_LATE = "this took longer than a page may take of the database, and was stopped after {:.1f} s"


def timed_out(error: BaseException) -> bool:
    """Whether an error says that the database took longer than it was given."""
    cause = error.__cause__ if isinstance(error, TensorDBError) else error
    return isinstance(cause, ExecutionTimeout) or (isinstance(cause, PyMongoError) and cause.timeout)


def _said(window: Window, error: BaseException) -> tuple[int, str]:
    for kinds, status in _STATUS:
        if isinstance(error, kinds):
            return status, window.redact(error)
    number = secrets.token_hex(4)
    _log.error("fault %s of the page", number, exc_info=error)
    return 500, f"a fault of the page, number {number}: the log of the process that serves it says more"


_STATUS: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    ((TimeLimitError, ConnectError), 503), ((NotFoundError,), 404), ((ReadOnlyError,), 403), ((TensorDBError,), 400),
    ((PyMongoError, TimeoutError), 503),
)  # fmt: skip
