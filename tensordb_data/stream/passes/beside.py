"""Beside: what the order of a stream needs to know of the samples of a plan, besides what it delivers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import QueryError, StateError
from tensordb_data.feedback.value import Feedback
from tensordb_data.stream.order.items import Items, items_of
from tensordb_data.stream.order.lengths import length_field, lengths_of
from tensordb_data.stream.order.sequence_order import SequenceOrder, sequence_order
from tensordb_data.stream.order.weights import cumulative_weights
from tensordb_data.stream.passes.feedback_weights import FeedbackWeights
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable

if TYPE_CHECKING:
    from tensordb_data.stream.passes.plan_reader import PlanReader
    from tensordb_data.stream.plan.index_snapshot import IndexSnapshot
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.stream.state import State

_ORDERS = 2
"""How many orders are kept: of the pass that is delivered, and of one that begins ahead of time."""


class Beside:
    """The weights and the lengths of the samples of a plan. Those of the newest plan are kept.

    A plan that is sent or stored has them with it, so that they need not be read again after the data has changed.
    """

    def __init__(self, spec: StreamSpec, reader: PlanReader) -> None:
        self._spec, self._reader = spec, reader
        weights = spec.weights
        self.feedback = FeedbackWeights(reader.warehouse, weights) if isinstance(weights, Feedback) else None
        """The weights of passes that are drawn by feedback; None if they are of the samples, or there are none."""
        self.drop()

    def drop(self) -> None:
        """Forget all, to free its memory."""
        self._weights: tuple[Plan, NDArray[np.float64]] | None = None
        self._lengths: tuple[Plan, NDArray[np.int64]] | None = None
        self._items: tuple[Plan, Items] | None = None
        self._orders: dict[tuple[int, tuple[int, int]], SequenceOrder] = {}
        if self.feedback is not None:
            self.feedback.drop()

    def take_over(self, other: Beside) -> None:
        """Use what another one has, for the plan of a stream that is the same."""
        self._weights, self._lengths, self._items = other._weights, other._lengths, other._items
        if self.feedback is not None and other.feedback is not None:
            self.feedback.take_over(other.feedback)

    def of_new(self, plan: Plan, now: IndexSnapshot) -> None:
        """Read what belongs to a plan that was just read, from the same snapshot."""
        self._field_weights(plan, now)
        self.lengths(plan, now)

    def drawn_by(self, plan: Plan, data: State | None) -> str | None:
        """The name of the weights of a pass, if they are of feedback, which is read now unless the pass has begun.

        Args:
            plan: The plan of the pass.
            data: Its data; None if that is not decided yet.

        Raises:
            NotFoundError, StorageError, SampleError, QueryError: See `FeedbackWeights.now`.
        """
        if self.feedback is None or len(plan) == 0:
            return None
        return data.drawn_by if data is not None and data.drawn_by is not None else self.feedback.now(plan)

    def added_to(self, plan: Plan, drawn_by: str | None) -> Plan:
        """The plan with its weights and lengths, to be sent or stored."""
        lengths = self.lengths(plan)
        named = {} if lengths is None else {self._length_field(plan): lengths}
        return replace(plan, cumulative_weights=self.cumulative_weights(plan, drawn_by), lengths=named)

    def take_from(self, plan: Plan) -> None:
        """Use the weights and lengths that a plan has with it."""
        if plan.cumulative_weights is not None:
            self._weights = (plan, plan.cumulative_weights)
            if self.feedback is not None:
                self.feedback.keep(plan, plan.cumulative_weights)
        if self._spec.tokens is not None and (found := plan.lengths.get(self._length_field(plan))) is not None:
            self._lengths = (plan, found)

    def cumulative_weights(self, plan: Plan, drawn_by: str | None = None) -> NDArray[np.float64] | None:
        """Running sums of the weights of a plan's samples; None if the stream has no weights.

        Args:
            plan: The plan.
            drawn_by: The name of the weights, if they are of feedback.

        Raises:
            StateError: Samples were deleted while the plan was read; or see `FeedbackWeights.get`.
            SampleError, QueryError: See `weights.cumulative_weights`.
        """
        if self.feedback is not None:
            return None if drawn_by is None or len(plan) == 0 else self.feedback.get(drawn_by, plan)
        return self._field_weights(plan, None)

    def _field_weights(self, plan: Plan, now: IndexSnapshot | None) -> NDArray[np.float64] | None:
        """The weights that are made of fields. `now` is the snapshot from which the plan was read, if it just was."""
        weights = self._spec.weights
        if weights is None or isinstance(weights, Feedback) or len(plan) == 0:
            return None
        if self._weights is None or self._weights[0] is not plan:
            layout = plan.table.layout
            named = (
                FieldLayout.choose((weights,), layout.schemas) if isinstance(weights, str) else layout.index_fields()
            )
            if isinstance(weights, str) and named.is_blob(weights):
                raise QueryError(f"`weights` must be a field of the index, and {weights!r} is stored as a blob")
            table = self._values(plan, named, now)
            self._weights = (plan, cumulative_weights(table, weights, self._spec.fields or ()))
        return self._weights[1]

    def lengths(self, plan: Plan, now: IndexSnapshot | None = None) -> NDArray[np.int64] | None:
        """The lengths of a plan's samples, int64 [n]; None if the stream does not ask for them.

        Args:
            plan: The plan.
            now: The snapshot from which the plan was read, if it was just read.

        Raises:
            StateError: Samples were deleted while the plan was read.
            SampleError, QueryError: See `lengths_of`.
        """
        if self._spec.tokens is None:
            return None
        if self._lengths is None or self._lengths[0] is not plan:
            name, table = self._length_field(plan), plan.table
            if name not in table.refs and name not in table.values:
                table = self._values(plan, FieldLayout.choose((name,), table.layout.schemas), now)
            self._lengths = (plan, lengths_of(table, name))
        return self._lengths[1]

    def sequence_order(self, plan: Plan, number: int, block_shuffle: tuple[int, int]) -> SequenceOrder | None:
        """The order of a pass whose samples are put together by their lengths; None if they are not.

        Args:
            plan: The plan of the pass.
            number: Of the pass.
            block_shuffle: How the stream shuffles.

        Raises:
            SampleError: A sample is too long; see `items_of`. Or see `lengths`.
        """
        lengths, tokens = self.lengths(plan), self._spec.tokens
        if lengths is None or tokens is None:
            return None
        if self._items is None or self._items[0] is not plan:
            self._items = (plan, items_of(plan.table, lengths, tokens))
        items, key = self._items[1], (number, block_shuffle)
        found = self._orders.get(key)
        if found is None or found.items is not items:
            while len(self._orders) >= _ORDERS:
                del self._orders[next(iter(self._orders))]
            self._orders.pop(key, None)
            found = self._orders[key] = sequence_order(items, self._spec, number, block_shuffle)
        return found

    def _length_field(self, plan: Plan) -> str:
        assert self._spec.tokens is not None
        return length_field(self._spec.tokens, plan.table.layout)

    def _values(self, plan: Plan, named: FieldLayout, now: IndexSnapshot | None) -> SampleTable:
        read: Callable[[], Plan] = (
            (lambda: self._reader.at(plan.versions, named))
            if now is None
            else (lambda: self._reader.read(named, plan.versions, now))
        )
        values = read()
        if values.ids != plan.ids:
            raise StateError("samples were deleted or edited while the stream began; begin again")
        return values.table
