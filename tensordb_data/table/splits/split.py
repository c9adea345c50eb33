"""Split samples into parts such as train and test, whole groups at a time, so that the parts stay when data arrives."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.common.chunks import chunks
from tensordb_data.common.html import Report
from tensordb_data.common.options import is_number
from tensordb_data.errors import QueryError
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.query.query import check_name
from tensordb_data.samples.changes.apply import logged_update
from tensordb_data.samples.mutations import LIMIT, Mutation, are_few
from tensordb_data.samples.update import evolve, fit
from tensordb_data.schema.schema import PROVENANCE
from tensordb_data.search.index import search_index
from tensordb_data.table.fields import check_field
from tensordb_data.table.splits.balance import balanced
from tensordb_data.table.splits.rows import SplitRows, read_rows
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tensordb_data.schema import Field
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.documents.samples import SplitDocument


@dataclass(frozen=True)
class SplitReport(Report):
    """How samples were split."""

    counts: Mapping[str, int]
    """How many samples each part has."""
    deviation: float
    """The largest difference between the fraction of a part that was asked for and that which it has: of all samples
    and, with `stratify`, of those with each value."""
    strata: Mapping[Any, Mapping[str, int]] = field(default_factory=dict)
    """With `stratify`, how many samples with each value each part has; None is for those without one."""
    groups: int = 0
    """How many groups there are; without `by`, as many as samples."""
    changed: int = 0
    """How many samples have got another value than they had."""


def split(
    bound: BoundQuery, parts: Mapping[str, float], by: str | None, stratify: str | None, seed: int, name: str
) -> SplitReport:
    """See `Selection.split`."""
    fractions = _checked(bound, parts, by, stratify, seed, name)
    seed = int(seed)
    config: SplitDocument = {
        "parts": list(fractions), "fractions": list(fractions.values()), "by": by, "stratify": stratify, "seed": seed,
    }  # fmt: skip
    with reported(bound.query):
        rows = retry_while_unavailable(partial(read_rows, bound, config, name), reads=True)
        hashes = [_hash(seed, key) for key in rows.keys]
        shares = list(fractions.values())
        if stratify is None:
            ends = list(accumulate(shares))[:-1]
            of_group = np.array([bisect_right(ends, place) for place in hashes], np.int64)
        else:
            of_group = balanced(rows, hashes, shares)
        new = of_group[rows.groups] if len(rows.ids) else rows.groups
        changed = _write(bound, config, name, rows, new) if len(rows.ids) else 0
    return _report(rows, new, fractions, stratify is not None, changed)


def _checked(
    bound: BoundQuery, parts: object, by: object, stratify: object, seed: object, name: object
) -> dict[str, float]:
    if bound.query.collection != "data":
        raise QueryError(f"only samples can be split: db.data.find(...); this is db.{bound.query.collection}")
    if not isinstance(parts, Mapping) or not parts:
        raise QueryError(f'split takes a dict of name to fraction, {{"train": 0.8, "test": 0.2}}; found {parts!r:.200}')
    for part, fraction in parts.items():
        if not isinstance(part, str) or not part:
            raise QueryError(f"split: a part has a name, a non-empty string; found {part!r:.100}")
        if not is_number(fraction) or not 0 < fraction <= 1:
            raise QueryError(f"split: the fraction of {part!r} is a number above 0, at most 1; found {fraction!r:.100}")
    if not math.isclose(math.fsum(parts.values()), 1, abs_tol=1e-6):
        raise QueryError(f"split: the fractions sum up to 1; found {math.fsum(parts.values()):.6g}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise QueryError(f"split: seed is a whole number; found {seed!r:.100}")
    for what, each in (("by", by), ("stratify", stratify)):
        if each is not None:
            check_field(bound, each, f"split, {what}=")
    if name in (by, stratify) or "." in check_name(name, "split"):
        raise QueryError(f"split: field= names the field for the parts, another one than by= and stratify=; "
                         f"found {name!r:.100}")  # fmt: skip
    return {part: float(fraction) for part, fraction in parts.items()}


def _hash(seed: int, key: bytes) -> float:
    """A number from 0 to below 1."""
    digest = hashlib.blake2b(b"%d " % seed + key, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _write(bound: BoundQuery, config: SplitDocument, name: str, rows: SplitRows, new: NDArray[np.int64]) -> int:
    warehouse, parts = bound.warehouse, config["parts"]
    _evolve(bound, name, parts, rows.datasets)
    moved = np.flatnonzero(new != rows.now)
    _note(bound, name, rows.datasets, None, unless=config)
    firsts = zip(*(column.tolist() for column in np.unique(new, return_index=True)), strict=True)
    texts = {(dataset, name, parts[part]): rows.id(at) for part, at in firsts for dataset in rows.datasets}
    if len(moved):
        search_index(warehouse, "data").add_groups({}, texts)

    count = 0
    if len(moved):
        few = are_few(warehouse, len(moved), rows.datasets)
        with Mutation(warehouse, "update", rows.datasets, alone=len(moved) <= LIMIT, stamps=few) as mutation:

            def change(some: Sequence[int], session: Any) -> int:
                mutation.check_not_renamed([name])
                changed = 0
                for i, part in enumerate(parts):
                    ids = [rows.id(at) for at in some if new[at] == i]
                    if ids:
                        there = {"_tdb.p": warehouse.project, "_id": {"$in": ids}}
                        update = {"$set": {name: part}, "$unset": {f"{PROVENANCE}.{name}": ""}}
                        changed += logged_update(warehouse, mutation, there, rows.datasets, update, len(ids), session)
                return changed

            count = sum(mutation.step(some, change) for some in chunks(moved.tolist(), LIMIT))
    if config["stratify"] is not None:
        _note(bound, name, rows.datasets, config)
    return count


def _evolve(bound: BoundQuery, name: str, parts: Sequence[str], datasets: Sequence[str]) -> None:
    """Check that the field can hold the names of the parts; where there is none, add it as an optional one."""
    new: dict[str, dict[str, Field]] = {}
    for dataset, schema in bound.warehouse.datasets.schemas(datasets).items():
        for part in parts:
            fit(dataset, schema, "$set", name, part, new)
    evolve(bound.warehouse, new)


def _note(
    bound: BoundQuery,
    name: str,
    datasets: Sequence[str],
    config: SplitDocument | None,
    *,
    unless: SplitDocument | None = None,
) -> None:
    """Note with the datasets how they were split, or that this is not known while samples change.

    A split that was killed has no note. So the next one gives the same parts as one that was not.
    """
    there: dict[str, Any] = bound.warehouse.datasets.filter(datasets)
    there[f"splits.{name}"] = {"$exists": True, "$ne": unless} if config is None else {"$ne": config}
    change = {"$unset": {f"splits.{name}": ""}} if config is None else {"$set": {f"splits.{name}": config}}
    found = bound.warehouse.index["datasets"]
    bound.warehouse.index.transaction(lambda session: found.update_many(there, change, session=session))


def _report(
    rows: SplitRows, new: NDArray[np.int64], fractions: Mapping[str, float], stratified: bool, changed: int
) -> SplitReport:
    n, strata = len(fractions), max(1, len(rows.names))
    table = np.bincount(rows.strata * n + new, minlength=strata * n).reshape(strata, n)
    wanted = np.array(list(fractions.values()))
    counted = np.concatenate([table, table.sum(0, keepdims=True)]) if stratified else table.sum(0, keepdims=True)
    there = counted[counted.sum(1) > 0]
    deviation = float(np.abs(there / there.sum(1, keepdims=True) - wanted).max()) if len(there) else 0.0

    def named(row: NDArray[Any]) -> dict[str, int]:
        return dict(zip(fractions, row.tolist(), strict=True))

    per = {value: named(row) for value, row in zip(rows.names, table, strict=True)} if stratified and len(new) else {}
    return SplitReport(named(table.sum(0)), deviation, per, len(rows.keys), changed)
