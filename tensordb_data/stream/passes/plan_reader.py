"""PlanReader: reads plans of one state of the data, from the cache of this host or from the index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pymongo.errors import OperationFailure

from tensordb_data.errors import BusyError, NotFoundError, QueryError
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.stream.plan.cache import NewestPlan, PlanCache, PlanKey, plan_key
from tensordb_data.stream.plan.extend import can_extend, extended_plan
from tensordb_data.stream.plan.index_snapshot import DataMoved, Deletions, IndexSnapshot, lacks_snapshot, open_snapshot
from tensordb_data.stream.plan.left_out import tell_left_out
from tensordb_data.stream.plan.patch import can_patch, patched_plan
from tensordb_data.stream.plan.plan import Plan, read_plan
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import Versions
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.schema.schema import Schema
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

T = TypeVar("T")

_ATTEMPTS, _SNAPSHOTS = 6, 3
"""Attempts to read a plan of one state of the data, and how many of them are made under a snapshot."""


class PlanReader:
    """Reads the plans of one stream."""

    def __init__(self, warehouse: Warehouse, spec: StreamSpec) -> None:
        self.warehouse, self._spec = warehouse, spec
        self.deletions: Deletions | None = None
        """Those that were there when the newest data was last looked at."""

    @property
    def bound_query(self) -> BoundQuery:
        """The query of the stream."""
        return BoundQuery(self.warehouse, self._spec.query)

    @property
    def _ordered(self) -> BoundQuery:
        """The query, in the order in which its plan is read.

        If the stream is shuffled, this is the order of commits. In that order, the blobs of neighbours lie together.
        """
        query = self._spec.query
        by_commit = self._spec.shuffle and query.limit is None and query.sort
        return BoundQuery(self.warehouse, query.replace(sort=None) if by_commit else query)

    def versions(self) -> Versions:
        """The versions of the datasets that the query can match, as they are now.

        Raises:
            NotFoundError: The query names no dataset that exists.
        """
        named = selected_datasets(self._spec.query.filter)
        return self._matched(self.warehouse.datasets.versions(named), named)

    def _matched(
        self, versions: Versions, named: Sequence[str] | None, session: ClientSession | None = None
    ) -> Versions:
        """The versions of those datasets that the query can match."""
        if not versions:
            known = ", ".join(sorted(self.warehouse.datasets.versions(None))) or "none yet"
            what = "no dataset " + ", ".join(map(repr, named)) if named else "no dataset at all"
            raise NotFoundError(f"there is {what} in project {self.warehouse.project!r}; datasets here: {known}")
        if named is None and len(versions) > 1:
            bound_query = self.bound_query
            with reported(bound_query.query):
                matched = {
                    name
                    for filter in bound_query.filters()
                    for name in bound_query.collection.distinct("dataset", filter, session=session)
                }
            return {name: pair for name, pair in versions.items() if name in matched} or versions
        return versions

    def layout(self, versions: Versions) -> FieldLayout:
        """How the fields of the stream are stored in the datasets of `versions`.

        Raises:
            QueryError: There is nothing to deliver, or see `FieldLayout.choose`.
        """
        return self._layout(self.warehouse.datasets.schemas(sorted(versions)))

    def _layout(self, schemas: Mapping[str, Schema]) -> FieldLayout:
        layout = FieldLayout.choose(self._spec.fields, schemas).decoded(self._spec.views)
        if self._spec.fields is None:
            tell_left_out(layout)
        if schemas and not layout.fields:
            raise QueryError(
                f"there is no field that all samples of {', '.join(map(repr, sorted(schemas)))} have: give `fields`, or"
                " narrow the query to one dataset"
            )
        return layout

    def newest(self, known: Plan | None, also: Callable[[Plan, IndexSnapshot], None]) -> Plan:
        """The plan of the data now, or of the data before a long change that is going on.

        Args:
            known: A plan, which is returned if it is of this data.
            also: Reads more of the snapshot from which the plan was read.

        Raises:
            BusyError: See `open_snapshot`.
        """
        named = selected_datasets(self._spec.query.filter)
        return self._read_snapshot(named, None, partial(self._now, named, known, also))

    def read_now(self, read: Callable[[IndexSnapshot, FieldLayout], T]) -> T:
        """What `read` finds in one state of the data, that of now or of before a long change that is going on.

        Args:
            read: Called with the snapshot and the layout of the fields; perhaps again, if the data moves meanwhile.

        Raises:
            BusyError: See `open_snapshot`.
            NotFoundError: The query names no dataset that exists.
        """
        named = selected_datasets(self._spec.query.filter)

        def at(now: IndexSnapshot) -> T:
            versions = self._matched(now.versions, named, now.session)
            found = read(now, self._layout(now.schemas(sorted(versions))))
            now.check()
            if now.stale:
                log.warning("%s; this reads the data before that", now.stale)
            return found

        return self._read_snapshot(named, None, at)

    def cached_before(self, error: BusyError) -> Plan | None:
        """The cached plan of the data before the change that made the server busy; None if there is none."""
        if not error.before:
            return None
        versions = self._matched(error.before, selected_datasets(self._spec.query.filter))
        return self.cached(self.layout(versions), versions)

    def _now(
        self,
        named: Sequence[str] | None,
        known: Plan | None,
        also: Callable[[Plan, IndexSnapshot], None],
        now: IndexSnapshot,
    ) -> Plan:
        versions = self._matched(now.versions, named, now.session)
        if now.stale:
            log.warning("%s; a pass begins on the data before that", now.stale)
        else:
            self.deletions = now.deletions()
        if known is not None and known.versions == versions:
            return known
        plan = self.read(self._layout(now.schemas(sorted(versions))), versions, now)
        also(plan, now)
        return plan

    def at(self, versions: Versions, layout: FieldLayout | None = None) -> Plan:
        """The plan of the data at `versions`. If it is not cached, it is read from what is still there of this data."""
        layout = layout or self.layout(versions)
        kept = self.cached(layout, versions)
        if kept is not None:
            return kept
        return self._read_snapshot(sorted(versions), versions, lambda now: self.read(layout, versions, now))

    def _read_snapshot(
        self, named: Sequence[str] | None, wanted: Versions | None, read: Callable[[IndexSnapshot], T]
    ) -> T:
        for attempt in range(_ATTEMPTS):
            snapshot = attempt < _SNAPSHOTS
            try:
                with open_snapshot(self.warehouse, named, wanted, snapshot) as now:
                    return read(now)
            except DataMoved:
                continue
            except (QueryError, OperationFailure) as error:
                if not (snapshot and lacks_snapshot(error)):
                    raise
        raise BusyError(
            f"the samples of {self._spec.query.brief} changed each of the {_ATTEMPTS - _SNAPSHOTS} times that they were"
            " read, and the server keeps no snapshot for so long: stop the updates for a while, or have it keep one"
            " for longer (its parameter minSnapshotHistoryWindowInSeconds)"
        )

    def read(self, layout: FieldLayout, versions: Versions, now: IndexSnapshot) -> Plan:
        """Read the plan of a snapshot. It is cached if the snapshot is of `versions`."""
        kept = self.cached(layout, versions, now)
        if kept is not None:
            return kept
        before, plan = self._before(layout, versions, now), None
        if before is not None and can_extend(before.versions, versions):
            plan = extended_plan(before, self._ordered, versions, now.session)
        elif before is not None:
            plan = patched_plan(before, self._ordered, versions, now.session)
        if plan is None:
            plan = read_plan(self._ordered, layout, versions, now.session)
        plan = replace(plan, since=self._since(before, versions, now))
        now.check()
        if now.is_of(versions):
            self.keep(plan, now)
        return plan

    @staticmethod
    def _since(before: Plan | None, versions: Versions, now: IndexSnapshot) -> dict[str, int]:
        """`Plan.since` of a plan that was read now, or made of one of before."""
        found = {name: number for name, number in now.begun().items() if name in versions}
        for name, number in () if before is None else before.since.items():
            if before is not None and before.versions[name][1] == versions[name][1]:
                found[name] = min(number, found.get(name, number))
        return found

    def keep(self, plan: Plan, now: IndexSnapshot | None = None) -> None:
        """Store a plan in the cache of this host, if it has one."""
        if (folder := self.warehouse.cache_dir) is not None:
            born = None if now is None else now.born(list(plan.versions))
            key = plan_key(self._ordered, plan.table.layout, plan.versions, born)
            PlanCache(folder / "plans").store(key, plan)
            self._newest.note(key, plan)

    @property
    def _newest(self) -> NewestPlan:
        return self.warehouse.memo(NewestPlan, NewestPlan)

    def cached(self, layout: FieldLayout, versions: Versions, now: IndexSnapshot | None = None) -> Plan | None:
        """The plan of the data at `versions`, if the cache of this host has it."""
        if self.warehouse.cache_dir is None:
            return None
        born = None if now is None else now.born(list(versions))
        return self._open(plan_key(self._ordered, layout, versions, born), layout)

    def _open(self, key: PlanKey, layout: FieldLayout) -> Plan | None:
        plan, folder = self._newest.get(key), self.warehouse.cache_dir
        if plan is None and folder is not None:
            plan = PlanCache(folder / "plans").open(key.exact, layout)
        if plan is not None:
            self._newest.note(key, plan)
        return plan

    def _before(self, layout: FieldLayout, versions: Versions, now: IndexSnapshot) -> Plan | None:
        """A plan of before that can be brought up to date without reading all of it; None if none is known."""
        if self._ordered.query.sort or self._spec.query.limit is not None or not now.is_of(versions):
            return None
        born = now.born(list(versions))
        key = plan_key(self._ordered, layout, versions, born)
        plan = self._newest.of_query(key)
        if plan is None and (folder := self.warehouse.cache_dir) is not None:
            known = PlanCache(folder / "plans").newest(key)
            if known is not None and known.keys() == versions.keys():
                plan = self._open(plan_key(self._ordered, layout, known, born), layout)
        if plan is None or not (can_extend(plan.versions, versions) or can_patch(plan, versions, now.docs)):
            return None
        return plan
