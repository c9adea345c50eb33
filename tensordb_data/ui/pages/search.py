"""The page of a search by words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordb_data.ui.parts.links import query_link

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.ui.view import View

_HITS = 50


def search(view: View) -> Response:
    """`./search`: entities of all kinds that have some words, each with the page of its query."""
    words, kind = view.one("words").strip(), view.one("kind")
    hits = view.db.search(words, kind=kind or None, limit=_HITS) if words else []
    return view.page("search.html", words=words, kind=kind, hits=[(hit, query_link(view, hit.query)) for hit in hits])
