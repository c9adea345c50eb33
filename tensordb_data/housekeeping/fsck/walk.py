"""A walk over the documents of a warehouse, on which what is wrong with one of them ends nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.blobs.keys import is_key
from tensordb_data.blobs.stores.base import Store
from tensordb_data.errors import CorruptBlobError, StorageError
from tensordb_data.housekeeping.documents import document_fault
from tensordb_data.housekeeping.fsck.report import Checked

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

BATCH = 1000
ROUND = 64 << 20  # bytes read at once

Doc = Mapping[str, Any]
Progress = Callable[[str, int, int], None]
"""Called with what is looked at, how many of it are done, of how many."""


class Walk:
    """The documents one by one, the stores that they name, and what was found so far."""

    def __init__(self, warehouse: Warehouse, progress: Progress, *, quick: bool = False) -> None:
        self.warehouse, self.mongo, self._progress = warehouse, warehouse.index.database, progress
        self.quick = quick
        """Whether sizes and times are compared alone, and no bytes of blobs."""
        self.report = Checked()
        self._unopened: set[Any] = set()

    def sound(self, name: str, filter: Doc, fields: Doc | None = None, sort: Any = None) -> Iterator[Doc]:
        """The documents as `all` gives them, without those that another tool has made unreadable, which are named."""
        for doc in self.all(name, filter, fields, sort):
            what = document_fault(name, doc)
            if what is None:
                yield doc
            else:
                self.report.find("damaged document", f"{name} {doc['_id']}", what)

    def store(self, doc: Doc) -> Store | None:
        """The store that a document names; None if it cannot be opened. The first time, this is a finding."""
        root, key = doc["root"], doc["key"]
        if not is_key(key):
            self.report.find("foreign key", f"{key!r:.100}", "no blob is named so; nothing will be deleted there")
        try:
            return self.warehouse.blobs.store(root)
        except StorageError as error:
            if root not in self._unopened:
                self._unopened.add(root)
                self.report.find("unopened root", f"root {root}", str(error))
            return None

    def all(self, name: str, filter: Doc, fields: Doc | None = None, sort: Any = None) -> Iterator[Doc]:
        total = self.mongo[name].count_documents(dict(filter))
        sort = sort or [("_id", 1)]
        found = self.mongo[name].find(dict(filter), fields, sort=sort, batch_size=BATCH, allow_disk_use=True)
        for done, doc in enumerate(found):
            self._progress(name, done, total)
            yield doc
        self._progress(name, total, total)

    @contextlib.contextmanager
    def document(
        self, name: str, doc: Doc, still: Doc | None = None, bad: Callable[[Any], None] | None = None
    ) -> Iterator[None]:
        """What is wrong with one document, or with what it refers to, is found, and the check goes on.

        Args:
            name: The collection.
            doc: The document.
            still: What must still hold for it, or a gc has taken it meanwhile.
            bad: Called with its `_id`.
        """
        try:
            yield
        except (StorageError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if self.mongo[name].find_one({"_id": doc["_id"], **(still or {})}, {"_id": 1}):
                if bad is not None:
                    bad(doc["_id"])
                kind = kind_of(error) if isinstance(error, StorageError) else "damaged document"
                told = str(error) if isinstance(error, StorageError) else f"it cannot be read: {error!r}"
                self.report.find(kind, f"document {doc['_id']} of {name}", told)


def kind_of(error: StorageError) -> str:
    """Of a finding about an object that cannot be read."""
    return "damaged object" if isinstance(error, CorruptBlobError) else "missing object"
