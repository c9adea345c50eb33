"""The page of a warehouse: `tensordb ui`, `db.ui()`, and `make_app` for other servers.

A page is a template that is filled by the public interface; the state of each is its address. Whatever is shown was
written by others, and is hostile: see `guard` for the rules that hold for every request and every answer.
"""

from __future__ import annotations

from tensordb_data.errors import MissingExtraError

try:
    from tensordb_data.ui.app import make_app
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("anyio", "jinja2", "markupsafe", "starlette"):
        raise
    raise MissingExtraError(
        f"the page needs starlette, uvicorn and jinja2, and there is no {error.name}: pip install 'tensordb-data[ui]'"
    ) from None

__all__ = ["make_app"]
