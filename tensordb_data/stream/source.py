"""Source: which samples a pass goes over, and how they are stored."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError, QueryError, StateError
from tensordb_data.stream.block import Layouts
from tensordb_data.stream.cursor import Versions, selected_datasets
from tensordb_data.stream.plan import Plan, read_plan
from tensordb_data.stream.plan_cache import PlanCache, plan_key
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import State
from tensordb_data.stream.weigh import cumulative

if TYPE_CHECKING:
    from tensordb_data.selection import Selection
    from tensordb_data.warehouse import TensorDB


class Source:
    """The selection of a stream: the state of its data, its layouts, and its newest plan, kept for the next pass."""

    def __init__(self, db: TensorDB, spec: StreamSpec) -> None:
        self.db, self.spec = db, spec
        self._plan: Plan | None = None
        self._weighed: tuple[Plan, NDArray[np.float64]] | None = None

    @property
    def selection(self) -> Selection[Any]:
        """The bound query."""
        return self.db.select(self.spec.query)

    def versions(self) -> Versions:
        """The state of the data now, of the datasets that the query can match.

        Raises:
            NotFoundError: the query names no dataset that exists.
        """
        named = selected_datasets(self.spec.query.filter)
        versions = self.db._data_version(named)
        if not versions:
            known = ", ".join(sorted(self.db._data_version(None))) or "none yet"
            what = "no dataset " + ", ".join(map(repr, named)) if named else "no dataset at all"
            raise NotFoundError(f"there is {what} in project {self.db.project!r}; datasets here: {known}")
        if named is None and len(versions) > 1:
            matched = set(self.selection.distinct("dataset"))
            return {name: pair for name, pair in versions.items() if name in matched} or versions
        return versions

    def layouts(self, versions: Versions) -> Layouts:
        """How the fields of the stream are stored in the datasets of `versions`.

        Raises:
            QueryError: there is nothing to deliver, or see `Layouts.choose`.
        """
        schemas = self.db._schemas(sorted(versions))
        layouts = Layouts.choose(self.spec.fields, schemas)
        if schemas and not layouts.fields:
            raise QueryError(
                f"there is no field that all samples of {', '.join(map(repr, sorted(schemas)))} have: give `fields`, or"
                " narrow the query to one dataset"
            )
        return layouts

    def plan(self, wanted: State | None = None) -> Plan:
        """The plan of the data now, or of the data that `wanted` refers to.

        Raises:
            StateError: samples of the wanted data were deleted or edited out of the query since.
        """
        versions = wanted.versions if wanted is not None and wanted.versions is not None else self.versions()
        plan = self._plan
        if plan is None or plan.versions != versions:
            plan = self._read(self.layouts(versions), versions)
        if wanted is not None and wanted.ids is not None and plan.ids != wanted.ids:
            raise StateError(
                f"the data has changed in mid-pass: the pass began with {wanted.n} samples, and {len(plan)} of that"
                ' time match now; load_state_dict(state, on_change="replan") begins the next pass on today\'s data'
            )
        self._plan = plan
        return plan

    def _read(self, layouts: Layouts, versions: Versions) -> Plan:
        selection = self.selection
        folder = self.db._cache_folder
        if folder is None:
            return read_plan(selection, layouts, versions)
        cache = PlanCache(folder / "plans")
        key = plan_key(selection, layouts, versions)
        plan = cache.open(key, layouts, versions)
        if plan is None:
            plan = read_plan(selection, layouts, versions)
            cache.store(key, plan)
        return plan

    def cumulative(self, plan: Plan) -> NDArray[np.float64] | None:
        """Running sums of the weights of a plan's samples, or `None` where all are alike.

        Raises:
            StateError: samples were deleted while the plan was read.
            SampleError, QueryError: see `weigh.cumulative`.
        """
        weights = self.spec.weights
        if weights is None or len(plan) == 0:
            return None
        if self._weighed is None or self._weighed[0] is not plan:
            layouts = plan.block.layouts
            named = Layouts.choose((weights,), layouts.schemas) if isinstance(weights, str) else layouts.index_fields()
            if isinstance(weights, str) and named.is_blob(weights):
                raise QueryError(f"`weights` must be a field of the index, and {weights!r} is stored as a blob")
            values = self._read(named, plan.versions)
            if values.ids != plan.ids:
                raise StateError("samples were deleted or edited while the stream began; begin again")
            self._weighed = (plan, cumulative(values.block, weights))
        return self._weighed[1]

    def drop(self) -> None:
        """Forget the plan, to free its memory."""
        self._plan = self._weighed = None

    def share(self, other: Source) -> None:
        """Use the plan of another source with the same query and fields."""
        self._plan, self._weighed = other._plan, other._weighed

    def agreed(self) -> Plan:
        """The plan of the data now, which under torch.distributed is the data that rank 0 sees."""
        distributed = sys.modules.get("torch.distributed")
        if (
            self.spec.world_size == 1
            or distributed is None
            or not distributed.is_available()
            or not distributed.is_initialized()
            or distributed.get_world_size() != self.spec.world_size
        ):
            return self.plan()
        shared: list[object] = [None]
        if self.spec.rank == 0:
            plan = self.plan()
            shared = [{"versions": dict(plan.versions), "ids": plan.ids, "n": len(plan)}]
        distributed.broadcast_object_list(shared, src=0)
        first = shared[0]
        assert isinstance(first, dict)
        return self.plan(State(versions=first["versions"], ids=first["ids"], n=first["n"]))
