"""Draw some of the selected entities at random."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.common.chunks import batched, chunks
from tensordb_data.errors import QueryError
from tensordb_data.mongo.retry import read_all, retry_while_unavailable
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_READ = 10_000
_FETCH = 1_000


def draw(bound: BoundQuery, n: int, seed: int) -> list[dict[str, Any]]:
    """The documents of `n` of the selected entities, in the order in which they are drawn; see `Selection.sample`.

    The entity at each position gets a random number, and those with the lowest are drawn. So the positions depend on
    the seed and on how many entities there are, and memory on `n` only.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise QueryError(f"sample: {name} is a whole number from {least}; found {value!r:.100}")
    with reported(bound.query):
        ids = retry_while_unavailable(partial(_drawn, bound, int(n), int(seed)), reads=True)
    return documents_of(bound, ids)


def documents_of(bound: BoundQuery, ids: Sequence[Any]) -> list[dict[str, Any]]:
    """The documents of some ids, in their order, with the fields of the query. Those that were deleted are left out."""
    projection = bound.projection()
    docs: dict[Any, dict[str, Any]] = {}
    if bound.query.frozen is not None:  # they are not those in the index
        wanted = set(ids)
        docs.update((doc["_id"], doc) for doc in bound.cursor(projection) if doc["_id"] in wanted)
        return [docs[id] for id in ids if id in docs]
    with reported(bound.query):
        for some in chunks(ids, _FETCH):
            named = {"_tdb.p": bound.warehouse.project, "_id": {"$in": list(some)}}
            docs.update((doc["_id"], doc) for doc in read_all(bound.collection.find(named, projection)))
    return [docs[id] for id in ids if id in docs]


def _drawn(bound: BoundQuery, n: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    kept: list[Any] = []
    keys = np.empty(0)
    for some in batched(bound.cursor({"_id": 1}), _READ):
        kept += [doc["_id"] for doc in some]
        keys = np.concatenate([keys, rng.random(len(some))])
        if len(kept) > n:
            lowest = np.argpartition(keys, n - 1)[:n]
            kept, keys = [kept[i] for i in lowest.tolist()], keys[lowest]
    return [kept[i] for i in np.argsort(keys, kind="stable").tolist()]
