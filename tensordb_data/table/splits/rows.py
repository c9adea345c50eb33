"""Read which samples a split divides, to which groups and strata they belong, and what they are part of so far."""

from __future__ import annotations

import datetime as dt
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId

from tensordb_data.errors import QueryError
from tensordb_data.samples.mutations import LIMIT
from tensordb_data.table.counts import keyed
from tensordb_data.table.paths import values_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.documents.samples import SplitDocument

_ID = 12
_NONE = -1  # of no part


@dataclass
class SplitRows:
    """The samples, in order of their `_id`."""

    ids: NDArray[Any]
    groups: NDArray[np.int64]
    strata: NDArray[np.int64]
    now: NDArray[np.int64]
    """The part that each sample has; -1 for none of them."""
    kept: NDArray[np.bool_]
    """Whether that part was given by the same split before."""
    keys: list[bytes]
    """What identifies each group."""
    names: list[Any]
    """The values of the strata."""
    datasets: list[str]

    def id(self, at: int) -> ObjectId:
        """The `_id` of a sample."""
        return ObjectId(self.ids[at].ljust(_ID, b"\0"))  # NumPy leaves out zeros at the end


def read_rows(bound: BoundQuery, config: SplitDocument, name: str) -> SplitRows:
    """Read the samples.

    Args:
        bound: The query.
        config: The split.
        name: The field for the parts.

    Raises:
        QueryError: A sample has no group, or several.
    """
    by, stratify, parts = config["by"], config["stratify"], {part: i for i, part in enumerate(config["parts"])}
    same = _same(bound, config, name)
    packed, groups, strata, now, kept = bytearray(), array("q"), array("q"), array("q"), array("b")
    known: dict[Any, int] = {}
    values: dict[Any, int] = {}
    datasets: set[str] = set()
    lacking = 0
    wanted = {"_id": 1, "dataset": 1, name: 1, **{each.split(".")[0]: 1 for each in (by, stratify) if each is not None}}
    for doc in _docs(bound, wanted):
        packed += doc["_id"].binary
        datasets.add(doc["dataset"])
        if by is not None:
            key = _value(doc, by, "by")
            lacking += key == (None, None)
            groups.append(known.setdefault(key, len(known)))
        strata.append(0 if stratify is None else values.setdefault(_value(doc, stratify, "stratify"), len(values)))
        part = doc.get(name)
        now.append(parts.get(part, _NONE) if isinstance(part, str) else _NONE)
        kept.append(doc["dataset"] in same and now[-1] != _NONE)
    if lacking:
        raise QueryError(
            f"split: {lacking:,} of the samples have no {by!r}, so that nobody knows to which group they belong; "
            f'leave them out, sel & {{"{by}": {{"$ne": None}}}}, or give them one'
        )
    ids = np.frombuffer(bytes(packed), f"S{_ID}")
    ids, first = np.unique(ids, return_index=True)  # a cursor may give a document twice if it moves meanwhile
    if by is None:
        grouped, keys = np.arange(len(ids)), [id.ljust(_ID, b"\0") for id in ids.tolist()]
    else:
        grouped, keys = np.array(groups, np.int64)[first], [_key(*key) for key in known]
    of, at = np.array(strata, np.int64)[first], np.array(now, np.int64)[first]
    names = [value for _, value in values]
    return SplitRows(ids, grouped, of, at, np.array(kept, bool)[first], keys, names, sorted(datasets))


def _docs(bound: BoundQuery, wanted: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    if bound.query.limit is None and bound.query.split is None:
        docs: Iterable[dict[str, Any]] = bound.collection.find(bound.filter(), wanted, batch_size=LIMIT)
        return docs
    return bound.cursor(wanted)  # type: ignore[no-any-return]


def _value(doc: dict[str, Any], name: str, what: str) -> tuple[str | None, Any]:
    """The value of a field with its kind.

    Raises:
        QueryError: It has several, or one that is no single value.
    """
    found = list(values_at(doc, name))
    if len(found) > 1 or (found and isinstance(found[0], (dict, list))):
        raise QueryError(
            f"split: {what}= names a field with one value, and {name!r} of sample {doc['_id']} has {found!r:.100}"
        )
    return keyed(found[0] if found else None)


def _same(bound: BoundQuery, config: SplitDocument, name: str) -> set[str]:
    """The datasets that were split in the same way before."""
    docs = bound.warehouse.index["datasets"].find({**bound.warehouse.datasets.filter(None)}, {f"splits.{name}": 1})
    return {doc["_id"]["d"] for doc in docs if doc.get("splits", {}).get(name) == config}


def _key(kind: str | None, value: Any) -> bytes:
    """What identifies a value in every process."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dt.datetime):
        value = value.isoformat()
    return f"{kind} {value}".encode()
