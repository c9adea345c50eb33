"""Which samples had been delivered to a run when a checkpoint was saved: from plans and positions in its checkpoints.

A checkpoint says at which position of which pass its stream stood, and has the plan of that pass. Earlier passes are
whole. The plan of such a pass is in another checkpoint of the run, or is the same as that of a pass before and
a pass after it between which the data has not changed. Where nothing tells, a plan of other data stands in, and the
result says that it is not exact.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tensordb_data.common.chunks import chunks
from tensordb_data.errors import CheckpointError, NotFoundError, QueryError, StorageError, TensorDBError
from tensordb_data.frozen.bound_query import FrozenQuery
from tensordb_data.mongo.retry import read_all
from tensordb_data.params.load import describe, load_parts
from tensordb_data.query.query import Query
from tensordb_data.runs.attempts import segments
from tensordb_data.runs.documents import attempts_of, named
from tensordb_data.samples.sample import Sample, make_samples
from tensordb_data.schema.schema import Schema
from tensordb_data.stream.order.block_shuffle import BlockShuffle, rows_at
from tensordb_data.stream.order.sharding import PassSharding
from tensordb_data.stream.passes.frozen_reader import plan_reader
from tensordb_data.stream.plan.format import DAMAGED, unpack_plan
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.time.ids import as_ids, unique_ids

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_FETCH = 1000
_NOW = 1 << 62
_PASSES = 1_000_000

Doc = Mapping[str, Any]
Ids = NDArray[np.uint8]


class Delivered:
    """The samples that had been delivered to a run: each once, whether it is still there or not.

    Iteration yields those that are still there, or all of them if they are of a frozen set.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        packed: Ids,
        times: NDArray[np.int64],
        notes: Sequence[str],
        queries: Sequence[Query],
    ) -> None:
        self._warehouse, self._queries = warehouse, list(queries)
        self.packed = packed
        """uint8 [n, 12]: their ids, in order."""
        self.times = times
        """int64 [n]: how often each was delivered."""
        self.notes = tuple(notes)
        """Why this is not exact, a line for each reason."""

    @property
    def exact(self) -> bool:
        """Whether these are all samples that were delivered, and no others."""
        return not self.notes

    @property
    def ids(self) -> list[ObjectId]:
        """Their ids."""
        return as_ids(self.packed)

    def __len__(self) -> int:
        return len(self.packed)

    def count(self) -> int:
        """How many samples these are."""
        return len(self)

    def __contains__(self, sample: object) -> bool:
        id = sample.id if isinstance(sample, Sample) else sample
        if not isinstance(id, ObjectId):
            return False
        return bool((self.packed == np.frombuffer(id.binary, np.uint8)).all(axis=1).any())

    def __iter__(self) -> Iterator[Sample]:
        left = self.ids
        for query in self._queries:
            if query.frozen is not None:
                wanted = set(left)
                left = []
                bound = FrozenQuery(self._warehouse, query)
                found: list[Any] = []
                for doc in bound.cursor():
                    if doc["_id"] in wanted:
                        wanted.discard(doc["_id"])
                        found.append(doc)
                    if len(found) == _FETCH:
                        yield from make_samples(self._warehouse, found)
                        found = []
                yield from make_samples(self._warehouse, found)
                left = sorted(wanted)
        for some in chunks(left, _FETCH):
            filter = {"_tdb.p": self._warehouse.project, "_id": {"$in": list(some)}}
            docs = {doc["_id"]: doc for doc in read_all(self._warehouse.index["data"].find(filter))}
            yield from make_samples(self._warehouse, [docs[id] for id in some if id in docs])

    def __repr__(self) -> str:
        how = "" if self.exact else f", not exact: {'; '.join(self.notes)}"
        return f"<{len(self):,} samples that were delivered, {int(self.times.sum()):,} times in all{how}>"


@dataclass(frozen=True)
class _Known:
    """What is known of the data of a pass."""

    number: int
    versions: Any
    plan: Callable[[], Plan | None]


def delivered(warehouse: Warehouse, doc: Doc) -> Delivered:
    """See `ParameterSet.samples`."""
    rows = (doc.get("lineage") or {}).get("data") or ()
    label = describe(doc)
    if not isinstance(rows, (list, tuple)) or not rows or "stream" not in doc["_tdb"].get("parts", ()):
        raise NotFoundError(
            f"{label} says nothing of the samples of its run: a checkpointer notes them that is given stream=, such as"
            " StepCheckpointer(..., stream=loader)"
        )
    sets = _line(warehouse, doc)
    states = [(one, _states(warehouse, one)) for one in sets]
    mine = states[-1][1]
    if len(mine) != len(rows):
        raise NotFoundError(f"{label}: its position is of {len(mine)} streams, and its lineage names {len(rows)}")
    found: list[tuple[Ids, int]] = []
    notes: list[str] = []
    queries: list[Query] = []
    began = _began(warehouse, doc)
    for number, (row, state) in enumerate(zip(rows, mine, strict=True)):
        try:
            query = Query.from_json(row["query"])
        except (QueryError, KeyError, TypeError):
            raise NotFoundError(f"{label}: the query of its samples is malformed") from None
        history = [(one, each[number]) for one, each in states if len(each) > number]
        try:
            one = _OneStream(warehouse, query, row, state, history, began)
            found += one.ids()
        except (QueryError, TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            if isinstance(error, NotFoundError):
                raise
            raise NotFoundError(f"{label}: the state of its stream is malformed: {error!s:.200}") from None
        notes += one.notes
        queries.append(query)
    packed, times = unique_ids(
        np.concatenate([np.zeros((0, 12), np.uint8), *(ids for ids, _ in found)]),
        np.concatenate([np.zeros(0, np.int64), *(np.full(len(ids), times, np.int64) for ids, times in found)]),
    )
    return Delivered(warehouse, packed, times, list(dict.fromkeys(notes)), queries)


def _line(warehouse: Warehouse, doc: Doc) -> list[Doc]:
    """The sets that came before a set in its run, over its attempts, and the set itself at the end."""
    run, step = doc.get("run"), doc.get("step")
    if run is None or step is None:
        return [doc]
    attempts = attempts_of(warehouse.index["runs"].find_one(named(warehouse, run)) or {})
    line = segments(attempts, doc["_tdb"].get("a"))
    each = [{"_tdb.a": id, **({} if last is None else {"step": {"$lte": last}})} for id, last in line]
    filter = {"_tdb.p": warehouse.project, "run": run, "_tdb.parts": "stream", "step": {"$lte": step}, "$or": each}
    found = read_all(warehouse.index["params"].find(filter).sort("_tdb.s", 1))
    return [*(one for one in found if one["_id"] != doc["_id"] and one["_tdb"]["s"] <= doc["_tdb"]["s"]), doc]


def _began(warehouse: Warehouse, doc: Doc) -> dt.datetime | None:
    """When the line of a set began; None if that is not known."""
    if doc.get("run") is None:
        return None
    attempts = attempts_of(warehouse.index["runs"].find_one(named(warehouse, doc["run"])) or {})
    first, _ = segments(attempts, doc["_tdb"].get("a"))[-1]
    found = next((each.get("began") for each in attempts if each.get("id") == first), None)
    return found if isinstance(found, dt.datetime) else None


def _states(warehouse: Warehouse, doc: Doc) -> list[Doc]:
    """The states of the streams of a set."""
    try:
        state = load_parts(warehouse, doc, ["stream"], "numpy")["stream"]
    except (CheckpointError, StorageError):
        return []
    if not isinstance(state, Mapping):
        return []
    streams = state.get("streams")
    if isinstance(streams, (list, tuple)):
        return [each for each in streams if isinstance(each, Mapping)]
    inner = state.get("stream")
    return [{**inner, "by sample": True} if isinstance(inner, Mapping) else state]


class _OneStream:
    """What one stream of a run has delivered."""

    def __init__(
        self,
        warehouse: Warehouse,
        query: Query,
        row: Doc,
        state: Doc,
        history: Sequence[tuple[Doc, Doc]],
        began: dt.datetime | None,
    ) -> None:
        self._warehouse, self._query, self._row, self._state = warehouse, query, row, state
        self.notes: list[str] = []
        weights = state.get("weights")
        self._spec = StreamSpec(
            query, max(1, int(row.get("batch_size") or 1)), ("_id",), shuffle=state.get("shuffle", False),
            replacement=bool(state.get("replacement")), weights=weights if weights != "function" else None,
            seed=int(state.get("seed", 0)),
        )  # fmt: skip
        self._reader = plan_reader(warehouse, self._spec)
        self._began = began
        self._known = list(self._evidence(history))
        self._plans: dict[Any, Plan | None] = {}
        self._found: dict[Any, tuple[Ids, int]] = {}

    def _evidence(self, history: Sequence[tuple[Doc, Doc]]) -> Iterator[_Known]:
        for doc, state in history:
            versions = state.get("versions")
            if versions and state.get("ids") and int(state.get("position", 0)):
                key = _versions(versions)
                yield _Known(int(state["pass"]), key, lambda doc=doc, state=state: self._stored(doc, state))  # type: ignore[misc]
            elif versions and int(state.get("position", 0)):  # of a cursor, which has no plan
                yield _Known(int(state["pass"]), _versions(versions), lambda: None)
        try:
            now = _versions(self._reader.versions())
        except TensorDBError:
            return
        yield _Known(_NOW, now, self._today)
        if self._query.frozen is not None or self._unchanged_since_it_began(now):
            yield _Known(-1, now, self._today)

    def _unchanged_since_it_began(self, now: Any) -> bool:
        if self._began is None:
            return False
        names = [name for name, _ in now]
        docs = self._warehouse.index["datasets"].find(self._warehouse.datasets.filter(names), {"changed": 1})
        times = [doc.get("changed") for doc in docs]
        return len(times) == len(names) and all(
            isinstance(at, dt.datetime) and _naive(at) < _naive(self._began) for at in times
        )

    def _today(self) -> Plan | None:
        try:
            return self._reader.at(self._reader.versions())
        except TensorDBError:
            return None

    def _stored(self, doc: Doc, state: Doc) -> Plan | None:
        """The plan of a state, from its checkpoint."""
        if "plans" not in doc["_tdb"].get("parts", ()):
            return None
        try:
            plans = load_parts(self._warehouse, doc, ["plans"], "numpy")["plans"]
            # the names of a state's datasets are all that a plan of ids needs to know of them
            layout = FieldLayout((), dict.fromkeys(state["versions"], Schema({})))
            for content in plans.values():
                plan = unpack_plan(np.asarray(content, np.uint8), layout)
                if plan.ids == state["ids"]:
                    return plan
        except (CheckpointError, StorageError, *DAMAGED):
            return None
        return None

    def ids(self) -> list[tuple[Ids, int]]:
        """The ids of all deliveries, in parts, and how often each part was delivered."""
        state = self._state
        if state.get("follow"):
            return [(self._followed(), 1)]
        last, position = int(state.get("pass", 0)), int(state.get("position", 0))
        if state.get("by sample"):
            self.notes.append(
                "its loader made the batches itself, sample by sample, so that of the passes that had begun all samples"
                " count"
            )
            last, position = last + (1 if position or int(state.get("position", 0)) else 0), 0
        if state.get("tokens") is not None and position:
            self.notes.append("its batches were made by tokens, so that of the pass in progress all samples count")
            last, position = last + 1, 0
        if last > _PASSES:
            raise ValueError(f"pass {last}")
        for number in range(last):
            self._of_pass(number, None)
        if position:
            self._of_pass(last, position)
        return list(self._found.values())

    def _of_pass(self, number: int, position: int | None) -> None:
        """Add the ids of a pass: of the first positions, or of all."""
        plan = self._plan(number)
        if plan is None:
            self.notes.append(f"nothing is known of the data of pass {number}")
            return
        n = len(plan)
        count = self._whole(n) if position is None else min(position, n)
        unknown = self._spec.replacement and self._state.get("weights") and plan.cumulative_weights is None
        if unknown:
            self.notes.append(f"the weights of pass {number} are not known, so that all samples count")
        if unknown or (count == n and not self._spec.replacement):
            ids, times = self._found.get(id(plan), (plan.table.ids, 0))
            self._found[id(plan)] = ids, times + 1
        elif n:
            blocks = self._state.get("blocks") or (0, 0)
            shuffle = BlockShuffle(int(blocks[0]), int(blocks[1]))
            rows = rows_at(np.arange(count), n, number, self._spec, shuffle, plan.cumulative_weights)
            self._found[number, id(plan)] = plan.table.ids[rows], 1

    def _whole(self, n: int) -> int:
        """How many samples a whole pass delivers."""
        if self._row.get("end") != "drop" or self._state.get("tokens") is not None:
            return n
        sharding = PassSharding(n, 0, self._spec.batch_size, int(self._row.get("world_size") or 1), "drop")
        return min(n, sharding.position(sharding.rounds))

    def _plan(self, number: int) -> Plan | None:
        # Counters only grow: if the nearest states before and after are the same one, so is what lies between.
        before = [known for known in self._known if known.number <= number]
        after = [known for known in self._known if known.number >= number]
        one = max(before, key=lambda known: known.number, default=None)
        other = min(after, key=lambda known: known.number, default=None)
        at_it = one is not None and one.number == number
        same = one is not None and (at_it or (other is not None and one.versions == other.versions))
        if one is not None and same and (plan := self._opened(one.versions)) is not None:
            return plan
        for known in [*sorted(after, key=lambda known: known.number), *reversed(before)]:
            if (plan := self._opened(known.versions)) is not None:
                what = "the data of today" if known.number in (_NOW, -1) else f"that of pass {known.number}"
                self.notes.append(
                    f"no checkpoint has the data of pass {number}, which may have differed from {what}, which counts"
                )
                return plan
        return None

    def _opened(self, versions: Any) -> Plan | None:
        """A plan of the data at some versions, from whatever has it."""
        if versions not in self._plans:
            plans = (known.plan() for known in self._known if known.versions == versions)
            self._plans[versions] = next((plan for plan in plans if plan is not None), None)
        return self._plans[versions]

    def _followed(self) -> Ids:
        self.notes.append("it followed what was committed: the samples count that are there today and match")
        plan = self._today()
        return plan.table.ids if plan is not None else np.zeros((0, 12), np.uint8)


def _versions(versions: Mapping[str, Any]) -> tuple[tuple[str, tuple[int, int]], ...]:
    return tuple(sorted((name, (int(pair[0]), int(pair[1]))) for name, pair in versions.items()))


def _naive(at: dt.datetime) -> dt.datetime:
    return at if at.tzinfo is None else at.astimezone(dt.timezone.utc).replace(tzinfo=None)
