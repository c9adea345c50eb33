"""What a Selection tells as a table: counts, summaries, aggregations, random entities, splits."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tensordb_data.common.html import Html, Shown
from tensordb_data.table.bounded import count_number
from tensordb_data.table.counts import value_counts
from tensordb_data.table.describe import Description, describe
from tensordb_data.table.draw import draw
from tensordb_data.table.estimate import Estimate, estimate
from tensordb_data.table.facets import Facet, facets, histogram
from tensordb_data.table.neighbours.duplicates import Duplicates, duplicates
from tensordb_data.table.neighbours.similar import Neighbours, similar
from tensordb_data.table.notebook import first_docs, selection_html, soon
from tensordb_data.table.page import Page, page
from tensordb_data.table.pipeline import aggregate
from tensordb_data.table.splits.split import SplitReport, split
from tensordb_data.table.thumbnails import Thumbnail, thumbnails
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Verbs
    from tensordb_data.warehouse.bound_query import BoundQuery

R = TypeVar("R", bound=Record)


class SelectionTable(Shown, abc.ABC, Generic[R]):
    """The methods of a `Selection` that treat it as a table."""

    @property
    @abc.abstractmethod
    def bound(self) -> BoundQuery:
        """The query, bound to its warehouse."""

    @property
    @abc.abstractmethod
    def _verbs(self) -> Verbs: ...

    def _html(self) -> Html:
        bound = self.bound
        with soon():
            return selection_html(bound, self._verbs.entities(first_docs(bound)))

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

    def page(
        self, n: int = 100, after: str | None = None, *, fields: Sequence[str] | None = None, seconds: float = 2.0
    ) -> Page[R]:
        """The next `n` entities, in the order of the Selection, in bounded time.

        `sel.page(100, after=page.next)` goes on where a page has ended, also in another process, and whatever was
        added or deleted meanwhile. In the default order of samples, a page that takes too long has fewer entities, or
        none, and the next one goes on from there; `looked` says how much was looked through.

        Args:
            n: At most so many, up to 10,000.
            after: `next` of the page before; None for the first page.
            fields: The fields to read; None for those of the query.
            seconds: How long it may take, about.

        Raises:
            QueryError: An argument is malformed, or `after` is of another query.
            TimeLimitError: In another order than the default one, the page takes longer; the message says which index
                would help.
        """
        docs, more, looked = page(self.bound, n, after, fields, seconds)
        return Page(self._verbs.entities(docs), more, looked)

    def thumbnails(self, field: str, size: int = 128) -> list[Thumbnail]:
        """A small picture of each sample, in the order of the Selection, as the bytes of a PNG or JPEG.

        Of arrays, those with two dimensions are pictures, and those with three of which the last has 1, 3 or 4
        channels; of others the first part that is one. Numbers that are not uint8 are scaled from their range. The
        blobs of some samples are in memory at a time.

        Args:
            field: An image or an array.
            size: Width and height at most, from 8 to 1024.

        Returns:
            One for each sample that has the field. What cannot be shown has an `error` in place of `data`.

        Raises:
            QueryError: There is no such field, or it is no picture.
            MissingExtraError: An image has to be decoded, and opencv is not installed.
        """
        return thumbnails(self.bound, field, size)

    def similar(self, to: Any, field: str = "embedding", k: int = 20, metric: str = "cosine") -> Neighbours:
        """The `k` samples whose vectors are nearest to one, the nearest first, each with its `score`.

        The comparison is exact, of all vectors as float32. Up to 512 MiB of vectors stay in memory for the next call,
        until the data of the Selection changes or the warehouse is closed. More are read in blocks each time.

        Args:
            to: A vector; or a sample or the `_id` of one, also of one that is not selected, which is then not among
                the results.
            field: The field of the vectors: an array of integers or floats, of one size in all samples. Arrays of
                several dimensions are compared as their numbers in C order.
            k: How many samples.
            metric: `"cosine"`, `"l2"` (the score is minus the distance) or `"dot"`. Higher scores are nearer.

        Returns:
            A sequence of samples, fewer than `k` where there are not so many. Samples with the same score are in the
            order of the Selection. `left_out` counts the samples that were not compared: without the field, with a
            vector of zeros, or with NaN or infinity in it.

        Raises:
            QueryError: An argument is malformed, there is no such field, it holds no vectors, or they differ in length
                from each other or from `to`.
            NotFoundError: There is no sample with that `_id`.
            SampleError: A vector cannot be read.
        """
        return similar(self.bound, to, field, k, metric)

    def duplicates(self, field: str = "embedding", above: float = 0.99) -> Duplicates:
        """Pairs of samples whose vectors have a cosine of `above` or more, and the groups that these pairs make.

        Each sample is compared with each other one, exactly, so the time grows with the square of their number; memory
        does not. See `similar` for what stays in memory.

        Args:
            field: The field of the vectors; see `similar`.
            above: A cosine above 0, up to 1.

        Returns:
            The pairs when it is iterated, with the highest score first; `groups`, also of more than a million pairs,
            which are not listed; `extra`, all but the first sample of each group; and `left_out`, as of `similar`.

        Raises:
            QueryError: See `similar`.
            SampleError: A vector cannot be read.
        """
        return duplicates(self.bound, field, above)

    def python(self) -> str:
        """Python source that makes this Selection from `db`; see `Query.python`."""
        return self.bound.query.python()

    def estimate(self, *, sample: int = 5_000, seed: int = 0) -> Estimate:
        """About how many entities match, in bounded time.

        Up to 10,000 are counted, where this is fast. Of more samples, the rate of those that match is found from some
        that are drawn at random; of entities of another kind, those that are counted within two seconds.

        Args:
            sample: How many to draw.
            seed: Which ones: a function of the seed.
        """
        return estimate(self.bound, sample, seed)

    def facets(
        self,
        fields: Sequence[str] | None = None,
        *,
        top: int = 10,
        bins: int = 24,
        sample: int = 5_000,
        seconds: float = 2.0,
        seed: int = 0,
    ) -> dict[str, Facet]:
        """How often the values of some fields occur, or a histogram of numbers and times, in bounded time.

        Up to 10,000 entities are read. Of more, some are drawn at random, and the numbers are estimates: `exact` is
        False. Values that are drawn fewer than 30 times are left out then.

        Args:
            fields: Names, also dotted ones; None for the fields of the schema that are values in the index, and tags.
            top: How many values of a field. One that has more is shown as a histogram, if it holds numbers or times.
            bins: How many bins.
            sample: How many to draw.
            seconds: How long the server may take for each read.
            seed: Which are drawn.

        Raises:
            QueryError: An argument is malformed, or a field is a blob or does not exist.
            TimeLimitError: It takes longer.
        """
        count_number(top, "facets: top")
        return facets(self.bound, fields, top, bins, sample, seconds, seed)

    def histogram(
        self, field: str, bins: int = 24, *, sample: int = 5_000, seconds: float = 2.0, seed: int = 0
    ) -> Facet:
        """How the numbers or times of a field are distributed, however few different ones there are; see `facets`.

        Raises:
            QueryError: An argument is malformed, or the field holds other values.
            TimeLimitError: It takes longer.
        """
        return histogram(self.bound, field, bins, sample, seconds, seed)

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
