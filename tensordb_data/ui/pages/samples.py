"""The page of a dataset: a query, what its samples are like, and the samples as a grid or a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensordb_data.errors import QueryError, TimeLimitError
from tensordb_data.mongo.retry import within
from tensordb_data.ui import view as view_
from tensordb_data.ui.parts import filters
from tensordb_data.ui.parts.asked import Asked, asked, fields_of
from tensordb_data.ui.shown import filter_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from tensordb_data.samples.sample import Sample
    from tensordb_data.table.page import Page
    from tensordb_data.ui.view import View

BLOCK = 100
_SECONDS = 0.25  # of a page; what is not found by then, the next one goes on with
_SORT_SECONDS = 1.5
_FACET_SECONDS = 1.5
_COUNT_SECONDS = 8.0  # of one who has asked for it
_BAR_HEIGHT = 44


def samples(view: View) -> Response:
    """`./data`: see the module."""
    values: dict[str, Any] = {"wrong": None, "asked": None, "page": None}
    try:
        values["asked"] = asked(view)
        values["page"] = _page(view, values["asked"])
    except (QueryError, TimeLimitError) as error:
        values["wrong"] = view.window.redact(error)
    dataset = view.one("dataset")
    return view.page(
        "data.html", 400 if values["wrong"] else 200, dataset=dataset, fields=fields_of(view, dataset),
        q=view.one("q"), sort=view.many("sort"), table=view.one("view") == "table", after=view.one("after"),
        picture=_picture(view, values["asked"]), **values,
    )  # fmt: skip


def _page(view: View, what: Asked) -> Page[Sample]:
    """The next block. Only what is shown is read: live writers keep blobs in the documents."""
    shown = what.captions if _picture(view, what) and view.one("view") != "table" else list(what.scalars)
    after, fields = view.one("after") or None, shown or ["tags"]
    if what.sort:
        return what.selection.page(BLOCK, after, fields=fields, seconds=_SORT_SECONDS)
    # The first part of such a page has no limit of its own.
    with within(view_.SECONDS):
        return what.selection.page(BLOCK, after, fields=fields, seconds=_SECONDS)


def tiles(view: View) -> Response:
    """`./tiles`: the next block of a grid, or the next rows of a table, as HTML."""
    what = asked(view)
    page = _page(view, what)
    return view.page(
        "tiles.html", asked=what, page=page, table=view.one("view") == "table", picture=_picture(view, what)
    )


def facets(view: View) -> Response:
    """`./facets`: what the samples are like, as HTML; a page of its own where there are no scripts."""
    what = asked(view)
    plain = what.selection.query.replace(sort=None)
    selection = view.db.select(plain)
    found = selection.facets(seconds=_FACET_SECONDS)
    number = selection.within(_FACET_SECONDS).estimate()

    def link(filter: Mapping[str, Any]) -> str:
        q = filter_text(filter) if filter else None
        return view.link("data", dataset=what.dataset, q=q, sort=what.sort, view=view.one("view"))

    return view.page(
        "facets.html", asked=what, facets=found, estimate=number, to=link, filters=filters,
        height=_BAR_HEIGHT,
    )  # fmt: skip


def count(view: View) -> Response:
    """`./count`: how many samples there are, counted.

    Raises:
        TimeLimitError, QueryError: That takes longer than somebody waits for it.
    """
    with within(_COUNT_SECONDS):
        return view.data({"count": asked(view).selection.bound.count()})


def explained(view: View) -> Response:
    """`./explain`: how the server answers the query."""
    found = asked(view).selection.explain()
    return view.data({name: value for name, value in found.items() if name != "raw"})


def python(view: View) -> Response:
    """`./python`: the source that selects the same."""
    return view.data({"python": asked(view).selection.python()})


def _picture(view: View, what: Asked | None) -> str:
    """The field whose thumbnails are shown; empty without one."""
    if what is None:
        return ""
    wanted = view.one("field")
    return wanted if wanted in what.pictures else (what.pictures or [""])[0]
