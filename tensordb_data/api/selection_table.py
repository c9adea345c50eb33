"""What a Selection tells as a table: counts, summaries, aggregations, random entities, splits."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tensordb_data.table.counts import value_counts
from tensordb_data.table.describe import Description, describe
from tensordb_data.table.draw import draw
from tensordb_data.table.pipeline import aggregate
from tensordb_data.table.split import SplitReport, split
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Verbs
    from tensordb_data.warehouse.bound_query import BoundQuery

R = TypeVar("R", bound=Record)


class SelectionTable(abc.ABC, Generic[R]):
    """The methods of a `Selection` that treat it as a table."""

    @property
    @abc.abstractmethod
    def bound(self) -> BoundQuery:
        """The query, bound to its warehouse."""

    @property
    @abc.abstractmethod
    def _verbs(self) -> Verbs: ...

    def value_counts(self, field: str, *, missing: bool = False) -> dict[Any, int]:
        """How often each value of a field occurs, most frequent first. Where the field holds lists, their items count.

        The server counts. `facets` gives an estimate within bounded time.

        Args:
            field: Its name: `"label"`, `"tags"`, or `"meta.who"` for what is within a field.
            missing: Also count the entities that have no value, under the key None.

        Raises:
            QueryError: The field is a blob, no selected dataset has it, or its values are dicts or lists.
        """
        return value_counts(self.bound, field, missing)

    def describe(self) -> Description:
        """A summary of each field: its kind, how many values there are and lack, their range and mean, or the most
        frequent ones; of blobs the bytes as they are stored. It is a table when it is printed.

        All documents are read, and no blobs: a million samples take several seconds.
        """
        return describe(self.bound)

    def sample(self, n: int, seed: int = 0) -> list[R]:
        """Draw `n` of the entities at random, each at most once, or all where there are fewer.

        Which positions of the Selection are drawn is a function of the seed and of how many entities there are. All
        ids are read for it.

        Raises:
            QueryError: An argument is no whole number, or too small.
        """
        return self._verbs.entities(draw(self.bound, n, seed))

    def aggregate(self, pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run an aggregation pipeline over the selected entities: `[{"$group": {"_id": "$label", "n": {"$sum": 1}}}]`.

        Filter, sort, limit and fields of the Selection come first, so a pipeline sees no other entities, and nothing
        that is internal. Without a sort or a limit, entities come in no particular order.

        Args:
            pipeline: Stages of MongoDB's aggregation. Those that write, that read other collections or the server, and
                what runs code are refused.

        Returns:
            The documents that come out.

        Raises:
            QueryError: A stage or an operator is refused or malformed, or looks at a field that is a blob.
        """
        return aggregate(self.bound, pipeline)

    def split(
        self,
        parts: Mapping[str, float],
        *,
        by: str | None = None,
        stratify: str | None = None,
        seed: int = 0,
        field: str = "split",
    ) -> SplitReport:
        """Divide the samples into parts, and write the name of the part of each into its field `split`.

        A part is chosen by a hash of the seed and the value of `by`. So samples with the same value are in the same
        part, in any warehouse, and stay there when data arrives and `split` is called again. The fractions are met
        as nearly as a random choice does.

        With `stratify`, each part gets about its fraction of the samples with each value, as nearly as whole groups
        allow. When it is called again with the same arguments, samples keep their part, so do new ones of a known
        group, and new groups fill up what is missing.

        Shuffled streams see all of the change, or nothing. If it is killed, call it again.

        Args:
            parts: `{"train": 0.8, "valid": 0.1, "test": 0.1}`; the fractions sum up to 1.
            by: The field that says which samples belong together, such as `"patient"`; None for each sample by itself.
            stratify: The field whose values are to be divided alike, such as `"label"`.
            seed: Another seed is another split.
            field: The field that is written. It is added to the schemas as an optional one, where it is not there.

        Returns:
            How many samples are in each part, and by how much the fractions deviate.

        Raises:
            QueryError: An argument is malformed, a sample has no value of `by` or several, or the Selection is not one
                of samples.
            SchemaError: The field is there, and does not hold texts.
        """
        return split(self.bound, parts, by, stratify, seed, field)
