"""Pages of what was: the history of a sample, and the frozen sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordb_data.ui.parts.links import id_of, query_link

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.ui.view import View

_CHANGES = 500
_SETS = 200


def history(view: View) -> Response:
    """`./history`: who changed a sample, when and how; of one that is deleted, too. The newest change comes first."""
    id = id_of(view.one("id"), "sample")
    found = view.db.data.history(id)
    there = view.db.data.find({"_id": id}).head(1)
    return view.page(
        "history.html",
        id=id,
        n=len(found),
        changes=list(reversed(found))[:_CHANGES],
        sample=there[0] if there else None,
    )


def frozen(view: View) -> Response:
    """`./frozen`: the cards of the frozen sets, the newest first."""
    cards = view.db.data.frozen()
    sets = [(card, None if card.query is None else query_link(view, card.query)) for card in cards[:_SETS]]
    return view.page("frozen.html", n=len(cards), sets=sets)
