"""Patch: a plan of samples of which some were changed. Only these are read.

A mutation of few samples leaves its number in each of them, and the log of changes names those that it has deleted. So
whatever may differ from the plan is found by an index: it is taken out of the plan, and what matches now is put in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pymongo.errors import OperationFailure

from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.stream.plan.extend import whole_rows
from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.inline import InlineBlobs
from tensordb_data.stream.plan.plan import PAGE, Plan, plan_of
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, column_of, concatenate
from tensordb_data.stream.state import Versions

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.bound_query import BoundQuery

_SHARE = 0.3
"""The share of the plan up to which it is patched."""
_STAMP = "_tdb.m"
_INDEX = "_tdb.p_1_dataset_1__tdb.m_1"
_BAD_VALUE = 2  # the server has no index of that name


def can_patch(before: Plan, now: Versions, docs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all that has changed since a plan can be found.

    Args:
        before: The plan.
        now: The versions of now.
        docs: The documents of the datasets.
    """
    return (
        before.table.sequence is not None
        and before.versions.keys() == now.keys()
        and all(
            before.versions[name][0] <= sequence
            and (before.versions[name][1] == mutation or _is_stamped(docs.get(name, {}), first(before, name), mutation))
            for name, (sequence, mutation) in now.items()
        )
    )


def first(before: Plan, name: str) -> int:
    """The last mutation of a dataset of which the plan has surely everything."""
    return min(before.versions[name][1], before.since.get(name, before.versions[name][1]))


def _is_stamped(doc: Mapping[str, Any], since: int, mutation: int) -> bool:
    stamps = doc.get("stamps")
    begins = stamps.get("since") if isinstance(stamps, Mapping) and stamps.get("to") == mutation else None
    return isinstance(begins, int) and begins <= since


def patched_plan(
    before: Plan, bound_query: BoundQuery, versions: Versions, session: ClientSession | None = None
) -> Plan | None:
    """The plan of now, from an earlier one. It is the same as one that is read as a whole.

    Args:
        before: The earlier plan; see `can_patch`.
        bound_query: Its query, without a sort or a limit.
        versions: The versions of now.
        session: The session of a snapshot, so that all samples are of one moment.

    Returns:
        None if so much has changed that it is better to read the plan as a whole, or if it cannot be told.
    """
    table, layout = before.table, before.table.layout
    left = np.ones(len(table), np.bool_)
    new: list[SampleTable] = []
    room = int(_SHARE * len(table))
    for name, (sequence, mutation) in versions.items():
        until, then = before.versions[name]
        if mutation != then:
            changed = _changed(bound_query, name, first(before, name), until, room, session)
            if changed is None:
                return None
            room -= len(changed)
            left[_rows(table, name, changed)] = False
            stamped = ({_STAMP: {"$gt": first(before, name)}}, _INDEX)
            one = {name: before.versions[name]}
            new += IndexReader(bound_query, layout, one, PAGE, session=session, among=stamped).tables()
        if sequence != until:
            one, since = {name: versions[name]}, {name: before.versions[name]}
            new += IndexReader(bound_query, layout, one, PAGE, session=session, since=since).tables()
    kept = table if left.all() else whole_rows(table, np.flatnonzero(left))
    joined = concatenate(layout, [each for each in (kept, *new) if len(each)])
    if joined.sequence is None:
        return None
    return plan_of(_as_read(_in_sequence(joined)), versions)


def _changed(
    bound_query: BoundQuery, name: str, since: int, until: int, most: int, session: ClientSession | None
) -> NDArray[np.int64] | None:
    """The sequence numbers of samples that were changed or deleted after a mutation; None if there are too many."""
    index, project = bound_query.warehouse.index, bound_query.warehouse.project
    found = [np.zeros(0, np.int64)]
    of = {"p": project, "dataset": name, "k": "delete", "m": {"$gt": since}}
    for doc in index["changes"].find(of, {"s": 1}, session=session):
        numbers = doc.get("s")
        if not isinstance(numbers, bytes) or len(numbers) % 8:  # another tool has written this
            return None
        found.append(np.frombuffer(numbers, "<i8"))
        most -= len(found[-1])
        if most < 0:
            return None
    stamped = {"_tdb.p": project, "dataset": name, _STAMP: {"$gt": since}, "_tdb.s": {"$lte": until}}
    cursor = index["data"].find(stamped, {"_id": 0, "_tdb.s": 1}, session=session, batch_size=PAGE)
    try:
        with cursor.hint(_INDEX).limit(most + 1) as docs:
            found.append(np.fromiter((doc["_tdb"]["s"] for doc in docs), np.int64))
    except OperationFailure as error:
        if error.code == _BAD_VALUE:
            return None
        raise
    return None if len(found[-1]) > most else np.concatenate(found)


def _rows(table: SampleTable, name: str, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of those of some samples of a dataset that are in a table."""
    assert table.sequence is not None
    if name not in table.datasets:
        return np.zeros(0, np.int64)
    here = np.flatnonzero(table.dataset == table.datasets.index(name)) if len(table.datasets) > 1 else slice(None)
    numbers = table.sequence[here]
    at = np.minimum(np.searchsorted(numbers, sequence), max(len(numbers) - 1, 0))
    rows = at[numbers[at] == sequence] if len(numbers) else at[:0]
    return rows if isinstance(here, slice) else here[rows]


def _in_sequence(table: SampleTable) -> SampleTable:
    """The samples in the order in which a query without a sort has them."""
    assert table.sequence is not None
    if len(table.datasets) > 1:
        ranks = np.argsort(np.argsort(np.array(table.datasets, object)))[table.dataset]
        return whole_rows(table, np.lexsort((table.sequence, ranks)))
    return whole_rows(table, np.argsort(table.sequence, kind="stable"))


def _as_read(table: SampleTable) -> SampleTable:
    """A table without what is left of samples that are not in it any more."""
    names, dataset = _used(table.datasets, table.dataset)
    refs = {}
    for name, found in table.refs.items():
        segments, segment = _used(found.segments, found.segment)
        packed = found.compressed if found.compressed is not None and found.compressed.any() else None
        refs[name] = BlobRefs(segments, segment, found.offset, found.length, packed)
    values = {name: _typed(table.layout, name, column) for name, column in table.values.items()}
    inline = {name: InlineBlobs() for name, found in refs.items() if INLINE in found.segments}
    return replace(
        table, datasets=names, dataset=dataset.astype(np.uint16), refs=refs, values=values, inline=inline
    )  # fmt: skip


def _used(names: Sequence[Any], numbers: NDArray[Any]) -> tuple[tuple[Any, ...], NDArray[Any]]:
    """Those names to which numbers refer, and the numbers in them."""
    there = np.bincount(numbers, minlength=len(names)) > 0
    if there.all():
        return tuple(names), numbers
    new = np.cumsum(there) - 1
    return tuple(name for name, used in zip(names, there, strict=True) if used), new[numbers].astype(numbers.dtype)


def _typed(layout: FieldLayout, name: str, column: NDArray[Any]) -> NDArray[Any]:
    return (
        column_of(layout, name, column.tolist()) if column.dtype == object and name not in ("_id", "tags") else column
    )
