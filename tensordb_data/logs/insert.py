"""Insert rows of a run in bulk, with their arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import bson
from bson import ObjectId
from bson.errors import BSONError
from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure

from tensordb_data.common.bson_values import MAX_DOCUMENT
from tensordb_data.logs.arrays import Tensors
from tensordb_data.mongo.errors import DOCUMENT_REFUSED, DUPLICATE_KEY, first_line, write_errors
from tensordb_data.runs.documents import marks, open_attempt
from tensordb_data.search.index import search_index
from tensordb_data.tensors.write import store_tensors

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse


class RowInserter:
    """What the thread of a log does with rows that it has taken.

    Args:
        warehouse: The warehouse.
        common: What all rows have: run and tags.
        attempt: The attempt of the saver that writes these rows; None to ask which one is under way.
    """

    def __init__(self, warehouse: Warehouse, common: Mapping[str, Any], attempt: Mapping[str, Any] | None) -> None:
        self._warehouse, self._common, self._attempt = warehouse, common, attempt
        self.refused: list[tuple[Any, str]] = []
        """Step and why, of rows that are to be named."""
        self.tensors: dict[ObjectId, Tensors] = {}
        """Of the rows that were taken, the arrays that are to be stored first."""
        self.texts: dict[tuple[str, str, str], ObjectId] = {}
        """Of the rows that were taken, what is to be searched."""
        self._left_out: set[ObjectId] = set()  # rows with arrays that the server refuses, until all others are in

    def insert(self, rows: list[dict[str, Any]]) -> None:
        """Insert rows. One that can never be stored is taken out of the list, and noted in `refused`."""
        common = self._common
        attempt = self._attempt or open_attempt(self._warehouse, common["run"])
        internal = {"p": self._warehouse.project, **marks(attempt)}
        for row in rows:
            tensors = self.tensors.get(row["_id"])
            row["_tdb"] = {**internal, "tensors": sorted(tensors)} if tensors else internal
        group = (common["run"], tuple(common["tags"]))
        search_index(self._warehouse, "logs").add_groups({group: rows[0]["_id"]}, self.texts)
        self.texts.clear()
        if self.tensors:
            self._insert_with_arrays([row for row in rows if row["_id"] in self.tensors.keys() - self._left_out])
            rows[:] = [row for row in rows if row["_id"] not in self.tensors]
            self.tensors.clear()
            self._left_out.clear()
            if not rows:
                return
        try:
            self._warehouse.index["logs"].insert_many(rows, ordered=False)
        except BulkWriteError as error:
            failures = write_errors(error)
            # the ids are ours: a row that is there already arrived at an attempt whose answer was lost
            if not all(failure.get("code") in {DUPLICATE_KEY, *DOCUMENT_REFUSED} for failure in failures):
                raise
            refused = [failure for failure in failures if failure.get("code") != DUPLICATE_KEY]
            steps = [rows[failure["index"]]["step"] for failure in refused]
            self.refused += zip(steps, (str(failure.get("errmsg")) for failure in refused), strict=True)
        except (BSONError, DocumentTooLarge, OverflowError, OperationFailure) as error:
            if isinstance(error, OperationFailure) and error.code not in DOCUMENT_REFUSED:
                raise
            fitting = [row for row in rows if self._fits(row)]
            if len(fitting) == len(rows):
                raise
            rows[:] = fitting
            if fitting:
                self.insert(rows)

    def _insert_with_arrays(self, rows: list[dict[str, Any]]) -> None:
        """Store the arrays of some rows, and insert the rows in a transaction that finds them stored."""
        logs = self._warehouse.index["logs"]
        there = set(logs.distinct("_id", {"_id": {"$in": [row["_id"] for row in rows]}}))
        rows = [row for row in rows if row["_id"] not in there]  # others arrived, and the answer did not
        if not rows:
            return
        tensors: Tensors = {}
        for row in rows:
            tensors.update(self.tensors[row["_id"]])

        def insert(session: ClientSession | None) -> None:
            if session is None:
                logs.insert_many(rows)
            else:
                logs.insert_many(rows, session=session)

        try:
            store_tensors(self._warehouse, "logs", ObjectId(), tensors, insert, None, self._common["run"])
        except (BSONError, DocumentTooLarge, OverflowError, OperationFailure) as error:
            codes = {failure.get("code") for failure in write_errors(error)} if isinstance(error, BulkWriteError) else (
                {error.code} if isinstance(error, OperationFailure) else DOCUMENT_REFUSED
            )  # fmt: skip
            if not codes or not codes <= DOCUMENT_REFUSED:
                raise
            if len(rows) == 1:
                self.refused.append((rows[0]["step"], first_line(error)))
                self._left_out.add(rows[0]["_id"])
                return
            middle = len(rows) // 2
            self._insert_with_arrays(rows[:middle])
            self._insert_with_arrays(rows[middle:])

    def _fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the driver can send a row."""
        try:
            size = len(bson.encode(row))
        except (BSONError, OverflowError) as error:
            self.refused.append((row["step"], str(error)))
            return False
        if size > MAX_DOCUMENT:
            self.refused.append((row["step"], f"it has {size / 1e6:.1f} MB, and a row has room for 16 MB"))
        return size <= MAX_DOCUMENT
