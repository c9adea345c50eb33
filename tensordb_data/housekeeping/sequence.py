"""Sequence numbers of samples: no two samples of a dataset may have the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo.collection import Collection


def numbered_twice(data: Collection[Any], project: str, dataset: str) -> Iterator[int]:
    """The numbers that several samples of a dataset have, in order, from the index alone."""
    scope = {"_tdb.p": project, "dataset": dataset}
    before = reported = None
    for doc in data.find(scope, {"_id": 0, "_tdb.s": 1}).sort([("_tdb.p", 1), ("dataset", 1), ("_tdb.s", 1)]):
        number = doc.get("_tdb", {}).get("s")
        if number == before and number != reported and isinstance(number, int):
            reported = number
            yield number
        before = number
