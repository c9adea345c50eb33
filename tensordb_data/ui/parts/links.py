"""From queries and entities to the pages that show them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bson import ObjectId
from bson.errors import InvalidId

from tensordb_data.errors import QueryError
from tensordb_data.query.query import Query
from tensordb_data.ui import shown
from tensordb_data.ui.view import View


def query_link(view: View, query: Query) -> str | None:
    """The page of what a query selects; None for one of a collection that has no page."""
    if query.frozen is not None:
        return None
    filter = query.filter
    sort = [name if direction > 0 else f"-{name}" for name, direction in query.sort or ()]
    if query.collection == "data":
        dataset = filter.pop("dataset", None)
        if not isinstance(dataset, str):
            filter, dataset = query.filter, None
        text = shown.filter_text(filter) if filter else None
        return view.link("data", dataset=dataset, q=text, sort=sort)
    if query.collection == "logs":
        return view.link("runs", run=filter["run"]) if isinstance(filter.get("run"), str) else view.link("runs")
    if query.collection in ("params", "jobs"):
        return view.link(query.collection, q=shown.filter_text(filter) if filter else None, sort=sort)
    return None


def stored_query(view: View, text: Any) -> tuple[str, str | None, str | None]:
    """A query that some document holds: its text, its page, and its fingerprint; of a damaged one only the text."""
    try:
        query = Query.from_json(text)
    except QueryError:
        return shown.brief(text, 300), None, None
    return query.brief, query_link(view, query), query.fingerprint


def parsed(text: str) -> dict[str, Any]:
    """The filter in a query box.

    Raises:
        QueryError: It is not a JSON object.
    """
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QueryError(f'this is not JSON ({error}); write for example {{"label": 3}}') from None
    if not isinstance(found, dict):
        raise QueryError(f'a filter is a JSON object such as {{"label": 3}}; found {text:.200}')
    return found


def parsed_sort(names: list[str]) -> list[tuple[str, int]] | None:
    """The order that words such as `-conf` ask for; None without any."""
    words = [word for name in names for word in name.split()]
    return [(word[1:], -1) if word.startswith("-") else (word, 1) for word in words] or None


def id_of(text: str, what: str) -> ObjectId:
    """The id in an address.

    Raises:
        QueryError: It is none.
    """
    try:
        return ObjectId(text)
    except (InvalidId, TypeError):
        raise QueryError(f"the id of a {what} has 24 hexadecimal digits; found {text[:100]!r}") from None


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names as dotted ones."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            found |= flat(item, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = item
    return found
