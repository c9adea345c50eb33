"""FrozenSelection: the samples of a frozen set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tensordb_data.api.selection import Selection
from tensordb_data.errors import QueryError
from tensordb_data.frozen.bound_query import refused
from tensordb_data.frozen.frozen_set import find_set
from tensordb_data.query.frozen_set import Frozen, check_set_name
from tensordb_data.query.query import Query
from tensordb_data.samples.sample import Sample
from tensordb_data.time.cards import FrozenCard, card_of
from tensordb_data.time.drop import drop_set
from tensordb_data.time.restore import Restored, restore

if TYPE_CHECKING:
    from tensordb_data.api.protocol import Facade


class FrozenSelection(Selection[Sample]):
    """The samples of a frozen set, with their values as they were. `Selection.freeze` and `db.data.frozen` make it.

    It is a Selection that never changes: it can be counted, iterated, streamed, exported, given to a job. What changes
    samples is refused, and so is what only the server can answer, `aggregate` and `&` with a filter among it.
    """

    @property
    def frozen(self) -> Frozen:
        """The name of the set, and its `_id`."""
        assert self.query.frozen is not None
        return self.query.frozen

    @property
    def name(self) -> str:
        """The name of the set."""
        return self.frozen.name

    @property
    def card(self) -> FrozenCard:
        """Counts, fields, who has frozen it, when, and by which query.

        Raises:
            NotFoundError: The set was dropped.
        """
        return card_of(find_set(self.db.warehouse, self.frozen))

    def drop(self, *, force: bool = False) -> None:
        """Remove the set. A gc removes what only this set has of blobs.

        Args:
            force: Also if checkpoints or jobs refer to it, which then name a set that is not there.

        Raises:
            InUseError: A checkpoint or a job refers to it.
            NotFoundError: There is no such set any more.
        """
        drop_set(self.db.warehouse, self.frozen, force)

    def restore(self, fields: Sequence[str] | None = None) -> Restored:
        """Give the samples of today the values that they had: an update of those that differ.

        What annotated a value then is noted again. Blobs are not restored, nor is what was added since removed. If the
        process is killed, call it again.

        Args:
            fields: Such as `["label", "tags"]`; None for all that the set has of the index. A field that was renamed
                since is restored under its new name.

        Returns:
            How many samples were updated, and what was not restored: samples that were deleted, fields that are gone or
            hold values of another kind now.

        Raises:
            QueryError: The set has no such field, or it is a blob.
            NotFoundError: The set was dropped.
        """
        return restore(self.bound, fields)

    # Refused

    def update(self, update: Mapping[str, Any], *, all: bool = False) -> NoReturn:
        """Refused: a frozen set never changes.

        Raises:
            QueryError: In any case.
        """
        raise refused(self.query, "updated")

    def tag(self, *tags: str) -> NoReturn:
        """Refused: a frozen set never changes.

        Raises:
            QueryError: In any case.
        """
        raise refused(self.query, "tagged")

    def untag(self, *tags: str) -> NoReturn:
        """Refused: a frozen set never changes.

        Raises:
            QueryError: In any case.
        """
        raise refused(self.query, "untagged")

    def delete(self, *, all: bool = False) -> NoReturn:
        """Refused: a frozen set never changes; `drop` removes it as a whole.

        Raises:
            QueryError: In any case.
        """
        raise refused(self.query, "deleted from")

    def split(
        self,
        parts: Mapping[str, float],
        *,
        by: str | None = None,
        stratify: str | None = None,
        seed: int = 0,
        field: str = "split",
    ) -> NoReturn:
        """Refused: a frozen set never changes. Split the samples before you freeze them.

        Raises:
            QueryError: In any case.
        """
        raise refused(self.query, "split")

    def watch(self) -> NoReturn:
        """Refused: nothing is added to a frozen set.

        Raises:
            QueryError: In any case.
        """
        raise QueryError(f"nothing is added to the frozen set {self.name!r}, so there is nothing to watch")

    def __and__(self, other: Any) -> NoReturn:
        raise QueryError(
            f"the frozen set {self.name!r} is not narrowed: its samples stay as they are. Narrow the query before you"
            " freeze it: db.data.find({...}).freeze(name)"
        )

    def __repr__(self) -> str:
        return f"<FrozenSelection {self.name!r} of project {self.db.project!r}>"


def named_set(db: Facade, name: str) -> FrozenSelection:
    """See `Data.frozen`."""
    doc = find_set(db.warehouse, Frozen(check_set_name(name)))
    return FrozenSelection(db, Query("data", frozen=Frozen(name, doc["_id"])))
