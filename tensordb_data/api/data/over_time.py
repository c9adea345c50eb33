"""Samples over time: who changed them, and how they were when they were frozen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from tensordb_data.api.collection import Collection
from tensordb_data.api.frozen.selection import FrozenSelection, named_set
from tensordb_data.api.selection import Selection
from tensordb_data.common.listing import Listing
from tensordb_data.errors import QueryError
from tensordb_data.samples.changes.history import Change, SampleChange, history, list_changes
from tensordb_data.samples.changes.prune import prune_changes
from tensordb_data.samples.sample import Sample
from tensordb_data.time.cards import FrozenCard, list_sets
from tensordb_data.time.diff import Diff, diff
from tensordb_data.time.forget.forget import forget
from tensordb_data.time.forget.report import Forgotten, ForgottenRecord, list_forgotten
from tensordb_data.time.overlap import Overlap, overlap
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from bson import ObjectId


class OverTime(Collection[Sample]):
    """The methods of `db.data` that look back."""

    def history(self, id: ObjectId) -> Listing[SampleChange]:
        """Who changed a sample, when, and how: its creation, updates, tags, annotations, ingests, and its deletion.

        It is a list, the newest change last, and a table when it is printed. Each change has `at`, `what`, `who`, `old`
        and `new`. Values are known where the log has them: those of a change of very large values are left out, and
        `left_out` says so. Changes that were made before this warehouse had a log are not known.

        Args:
            id: The `_id` of the sample, which may be deleted.

        Raises:
            NotFoundError: There is no such sample in this project, and there was none that the log knows of.
            QueryError: `id` is no ObjectId.
        """
        return history(self._warehouse, id)

    def changes(self, dataset: str, *, limit: int | None = None) -> Listing[Change]:
        """The log of changes of a dataset: what was done, when, by whom, and to how many samples.

        It is a list, the newest last, and a table when it is printed. Commits of one process within a minute are one
        entry; a change of more than 10,000 samples has an entry for each 10,000. What a change did to a sample is in
        `history`.

        Args:
            dataset: The name of the dataset.
            limit: Only so many, the newest ones.

        Raises:
            NotFoundError: There is no such dataset.
        """
        return list_changes(self._warehouse, dataset, limit)

    def prune_changes(self, dataset: str, *, older_than: dt.timedelta) -> int:
        """Remove entries from the log of changes of a dataset. Nothing else removes any, but `drop`.

        The log notes that, so that a history with a hole says so.

        Args:
            dataset: The name of the dataset.
            older_than: How old entries must be, on the clock of the server.

        Returns:
            How many entries were removed.

        Raises:
            NotFoundError: There is no such dataset.
            QueryError: `older_than` is no positive timedelta.
        """
        return prune_changes(self._warehouse, dataset, older_than)

    @overload
    def frozen(self, name: None = None) -> Listing[FrozenCard]: ...

    @overload
    def frozen(self, name: str) -> FrozenSelection: ...

    def frozen(self, name: str | None = None) -> Listing[FrozenCard] | FrozenSelection:
        """A frozen set by its name; or the cards of all, the newest first, which are a table when they are printed.

        Args:
            name: The name that `Selection.freeze` gave it; None for all.

        Raises:
            NotFoundError: There is no frozen set of this name.
        """
        if name is None:
            return list_sets(self._warehouse)
        return named_set(self.db, name)

    def diff(self, old: str | Selection[Sample], new: str | Selection[Sample]) -> Diff:
        """Compare two frozen sets, or one with the samples of now: what was added, removed and changed.

        Args:
            old: The name of a frozen set, or a Selection.
            new: The same.

        Returns:
            `added`, `removed` and `changed`, each of which has a length at once and reads its samples as it is
            iterated. A change has `(old, new)` by field. It is a table of the counts when it is printed.

        Raises:
            NotFoundError: There is no frozen set of such a name, or no such dataset.
            QueryError: An argument is neither a name nor a Selection of samples of this project.
        """
        return diff(self._state(old), self._state(new))

    def overlap(
        self,
        one: str | Selection[Sample],
        other: str | Selection[Sample],
        *,
        fields: Sequence[str] | None = None,
        embedding: str | None = None,
        above: float | None = None,
    ) -> Overlap:
        """Which samples two Selections share, such as those for training and those for a test.

        Args:
            one: A Selection, or the name of a frozen set.
            other: The same.
            fields: The blobs by whose content samples are the same; None for all that both have. Without blobs in
                common it is the values of all fields that both have.
            embedding: A field of vectors, by which near duplicates are found too. See `Selection.duplicates`.
            above: The least cosine of vectors that are near, above 0, up to 1; by default 0.99.

        Returns:
            `by_id`, the samples that are in both; `by_content`, pairs of different samples whose stored bytes are
            equal; and with `embedding`, `near`: pairs of different samples with their `score`, up to 1,000,000, and
            what was not compared. It is a table of the counts when it is printed.

        Raises:
            NotFoundError: There is no frozen set of such a name, or no such dataset.
            QueryError: An argument is malformed, or the embeddings of the two do not have one length.
        """
        return overlap(self._state(one), self._state(other), fields, embedding, above)

    def forget(self, selection: Selection[Sample], *, reason: str, dry_run: bool = False) -> Forgotten:
        """Delete samples with all that is stored of them.

        Their segments are rewritten and removed at once, not by a later gc; the log of changes, search words, feedback
        and tombstones do not have them any more, and the cache of this host is emptied. If it was stopped, the next
        call ends it, whatever it is asked to forget. Samples that frozen sets have are refused: drop the sets first.

        Args:
            selection: The samples, at most 500,000. All segments of their datasets are looked through.
            reason: Why, such as `"GDPR 2026-114"`: `forgotten` lists it.
            dry_run: Whether to change nothing, and only report what would be done, and which frozen sets are in the
                way.

        Returns:
            What was done; the parameter sets that have seen the samples; and what was not reached.

        Raises:
            QueryError: An argument is malformed, or a frozen set has the samples or others in their segments.
            BusyError: A backup, a freeze or a compaction runs.
            CorruptBlobError: A segment is damaged, or a blob of another sample in it.
            StorageError: The blob store failed; call it again.
        """
        return forget(self._selected(selection), reason, dry_run)

    def forgotten(self) -> Listing[ForgottenRecord]:
        """What was forgotten, the newest last: when, by whom and why, and which parameter sets had seen it. No ids."""
        return list_forgotten(self._warehouse)

    def _selected(self, selection: object) -> BoundQuery:
        if isinstance(selection, Selection) and selection.db == self.db and selection.query.collection == "data":
            return selection.bound
        raise QueryError(f"expected a Selection of samples of this project; found {selection!r:.200}")

    def _state(self, named: object) -> BoundQuery:
        if isinstance(named, str):
            return self.frozen(named).bound
        if isinstance(named, Selection) and named.db == self.db:
            return named.bound
        raise QueryError(
            f"expected the name of a frozen set, or a Selection of this warehouse and project; found {named!r:.200}"
        )
