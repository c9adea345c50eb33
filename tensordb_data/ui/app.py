"""The app: which page is where, and the guard around all of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tensordb_data.api.database import TensorDB
from tensordb_data.errors import QueryError
from tensordb_data.ui.guard import MOST_BODY, Guard, Keys
from tensordb_data.ui.pages import curves, edits, home, jobs, params, past, runs, sample, samples, search, thumbs
from tensordb_data.ui.pages import metrics as metrics_page
from tensordb_data.ui.view import HERE, Handler, View, Window, answer

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

PAGES: dict[str, Handler] = {
    "": home.home, "storage": home.storage, "search": search.search,
    "data": samples.samples, "tiles": samples.tiles, "facets": samples.facets, "count": samples.count,
    "explain": samples.explained, "python": samples.python,
    "sample": sample.sample, "logged": sample.logged, "blob": sample.blob, "array": sample.array,
    "history": past.history, "frozen": past.frozen,
    "thumbs": thumbs.thumbs, "thumb": thumbs.thumb,
    "runs": runs.runs, "curves": curves.curves, "sampled": curves.sampled, "fresh": curves.fresh,
    "params": params.params, "set": params.one_set,
    "jobs": jobs.jobs, "job": jobs.job,
}  # fmt: skip
"""By the last part of the address. All pages are side by side, so that links among them need no prefix."""
OWN_TIME: frozenset[Handler] = frozenset(
    (home.home, samples.samples, samples.tiles, samples.facets, metrics_page.metrics)
)
"""Those that give the database a time for each thing that they ask; one for all of them would take its place."""
SLOW: frozenset[Handler] = frozenset((samples.count, curves.curves, home.garbage))
"""Those that may take as long as somebody waits for them."""
EDITS: dict[str, Handler] = {"edit": edits.edit, "cancel": jobs.cancel, "retry": jobs.retry, "garbage": home.garbage}
"""What `write=True` adds: none of them deletes, moves or makes anything."""
_TYPES = {".js": "text/javascript", ".css": "text/css", "": "text/plain"}


def make_app(
    db: TensorDB, *, token: str, write: bool = False, hosts: Iterable[str] = (), metrics: bool = False
) -> ASGIApp:
    """The page of a warehouse as an ASGI app, for another server than that of `tensordb ui`, and for tests.

    Args:
        db: The warehouse, and the project that is shown first. It stays open, and is closed by the caller.
        token: Whoever knows it may read all projects of the warehouse: `http://host/?token=...` opens the page. Make it
            with `secrets.token_urlsafe(24)`.
        write: Whether the page may change labels and tags, cancel jobs and retry them.
        hosts: Names by which browsers may call the server, beside those of the loopback interface.
        metrics: Whether `./metrics` answers Prometheus, which brings the token as its credentials.

    Raises:
        QueryError: An argument is malformed.
        MissingExtraError: Starlette or Jinja2 is not installed.
    """
    if not isinstance(db, TensorDB):
        raise QueryError(f"make_app takes a TensorDB; found a {type(db).__name__}")
    if isinstance(hosts, str):
        raise QueryError(f"hosts= is a list of names of hosts; found the text {hosts!r:.200}")
    keys = Keys(token)
    reading = db if db.warehouse.address.read_only else TensorDB.over(db.warehouse.only_reading())
    window = Window(reading, db if write else None, keys)
    routes = [Route(f"/{name}", functools.partial(_get, handler, window)) for name, handler in PAGES.items()]
    if metrics:
        routes.append(Route("/metrics", functools.partial(_get, metrics_page.metrics, window)))
    if write:
        routes += [
            Route(f"/{name}", functools.partial(_post, handler, window), methods=["POST"])
            for name, handler in EDITS.items()
        ]
    files = {
        path.relative_to(HERE / "static").as_posix(): (path.read_bytes(), _TYPES.get(path.suffix, "text/plain"))
        for path in (HERE / "static").rglob("*")
        if path.is_file()
    }
    routes.append(Route("/static/{name:path}", functools.partial(_static, files)))
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # it would lead out of the prefix of a proxy
    return Guard(app, keys, list(hosts))


async def _get(handler: Handler, window: Window, request: Request) -> Response:
    return await answer(handler, View(window, request), own_time=handler in OWN_TIME, slow=handler in SLOW)


async def _post(handler: Handler, window: Window, request: Request) -> Response:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            return PlainTextResponse(f"413: a change has at most {MOST_BODY:,} bytes\n", 413)
    try:
        given: Any = json.loads(bytes(body))
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return PlainTextResponse("400: a change is a JSON object\n", 400)
    return await answer(handler, View(window, request, given), own_time=True, slow=handler in SLOW)


async def _static(files: dict[str, tuple[bytes, str]], request: Request) -> Response:
    found = files.get(request.path_params["name"])
    if found is None:
        return PlainTextResponse("404: there is no such file\n", 404)
    return Response(found[0], media_type=found[1])
