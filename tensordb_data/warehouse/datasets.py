"""The schemas and the counters of the datasets of a project."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pymongo import ReturnDocument
from pymongo.read_concern import ReadConcern

from tensordb_data.mongo.retry import read_all
from tensordb_data.schema.kinds import BLOB_KINDS
from tensordb_data.schema.schema import Schema, stored_schema

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.documents.samples import DatasetDocument, DatasetId
    from tensordb_data.warehouse.index import Index

DataVersion = tuple[int, int]
"""Sequence and mutation counter of a dataset. Two states with the same pair are the same state."""

ONE_MORE = {
    "since": {"$cond": [{"$eq": ["$stamps.to", "$mut"]}, "$stamps.since", "$mut"]},
    "to": {"$add": ["$mut", 1]},
}
"""What `stamps` becomes with a mutation whose samples are stamped: see `DatasetDocument`."""
_COUNTED = {"mut": 1, "renamed": 1, "changed": 1}


class Datasets:
    """The documents of the datasets of one project.

    Args:
        index: The index.
        project: The project.
    """

    def __init__(self, index: Index, project: str) -> None:
        self._index, self._project = index, project

    def id(self, name: str) -> DatasetId:
        """The `_id` of a dataset's document."""
        return {"p": self._project, "d": name}

    def schemas(self, names: Sequence[str]) -> dict[str, Schema]:
        """The schemas of those datasets that exist and have one."""
        named = {**self.filter(names), "schema": {"$ne": None}}
        docs: Iterable[DatasetDocument] = self._read(named, {"schema": 1})
        found = ((doc["_id"]["d"], stored_schema(doc["schema"])) for doc in docs)
        return {name: schema for name, schema in found if schema is not None}

    def blob_datasets(self, fields: Iterable[str], names: Sequence[str] | None) -> dict[str, frozenset[str]]:
        """The datasets in which a field is stored as a blob, for each field that is one in any of them.

        Args:
            fields: Names of fields.
            names: The datasets to look at; None for all of the project.
        """
        kinds = [f"schema.{field}.kind" for field in sorted(fields)]
        if not kinds:
            return {}
        some = {"$or": [{kind: {"$in": list(BLOB_KINDS)}} for kind in kinds]}
        docs = self._read({"$and": [self.filter(names), some]}, dict.fromkeys(kinds, 1))
        found: dict[str, set[str]] = {}
        for doc in docs:
            for field, stored in doc["schema"].items():
                if stored.get("kind") in BLOB_KINDS:
                    found.setdefault(field, set()).add(doc["_id"]["d"])
        return {field: frozenset(datasets) for field, datasets in found.items()}

    def versions(self, names: Sequence[str] | None = None) -> dict[str, DataVersion]:
        """The version of each dataset, or of each that is named and exists."""
        docs: Iterable[DatasetDocument] = self.counters().find(self.filter(names), {"seq": 1, "mut": 1})
        return {doc["_id"]["d"]: (doc["seq"], doc["mut"]) for doc in docs}

    def counters(self, concern: str = "majority") -> Any:
        """The documents of the datasets, as a majority of the servers has them.

        Writes that only a deposed primary has are rolled back. Those of a majority are not.
        """
        found = self._index["datasets"]
        return found.with_options(read_concern=ReadConcern(concern)) if self._index.is_server else found

    def deletions(self, names: Sequence[str]) -> dict[str, int]:
        """The mutation counter that each dataset had when samples of it were last deleted; 0 for never."""
        docs: Iterable[DatasetDocument] = self._index["datasets"].find(self.filter(names), {"del": 1})
        return {doc["_id"]["d"]: doc.get("del", 0) for doc in docs}

    def mark_changed(
        self,
        names: Sequence[str] | None,
        *,
        deleted: bool = False,
        stamped: bool = False,
        session: ClientSession | None = None,
    ) -> dict[str, DatasetDocument]:
        """Count a change of existing samples in those datasets, or in every one.

        Args:
            names: The datasets; None for all of the project.
            deleted: Whether samples were deleted.
            stamped: Whether plans can find the samples, see `samples.stamps`; in a transaction only.
            session: Of the transaction that changes them, if there is one.

        Returns:
            `mut`, `renamed` and `changed` of each dataset after that.
        """
        index, found = self._index, self.filter(names)

        def count() -> dict[str, DatasetDocument]:
            change: Any = {"$inc": {"mut": 1}, "$currentDate": {"changed": True}}
            if index.is_server and (deleted or stamped):
                more: dict[str, Any] = {"$add": ["$mut", 1]}
                to_set = {"mut": more, "changed": "$$NOW", **({"del": more} if deleted else {})}
                change = [{"$set": to_set | ({"stamps": ONE_MORE} if stamped else {})}]
            elif deleted:  # mongomock knows no pipelines
                for doc in index["datasets"].find(found, {"mut": 1}):
                    index["datasets"].update_one(
                        {"_id": doc["_id"]}, {"$set": {"mut": doc["mut"] + 1, "del": doc["mut"] + 1}}
                    )
                return self.counted(names)
            if names is not None and len(names) == 1:
                one: DatasetDocument | None = index["datasets"].find_one_and_update(
                    {"_id": self.id(names[0])}, change, _COUNTED, return_document=ReturnDocument.AFTER,
                    session=session,
                )  # fmt: skip
                return {} if one is None else {names[0]: one}
            index["datasets"].update_many(found, change, session=session)
            return self.counted(names, session)

        return index.write(count) if session is None else count()

    def counted(self, names: Sequence[str] | None, session: ClientSession | None = None) -> dict[str, DatasetDocument]:
        """`mut`, `renamed` and `changed` of each of those datasets, or of every one, as a transaction sees them."""
        docs: Iterable[DatasetDocument] = self._index["datasets"].find(self.filter(names), _COUNTED, session=session)
        return {doc["_id"]["d"]: doc for doc in docs}

    def _read(self, filter: Mapping[str, Any], projection: Mapping[str, Any]) -> list[Any]:
        return read_all(self._index["datasets"].find(filter, projection))

    def filter(self, names: Sequence[str] | None) -> dict[str, Any]:
        """The filter of the documents of these datasets; of all of the project for None."""
        if names is None:
            return {"_id.p": self._project}
        return {"_id": {"$in": [self.id(name) for name in names]}}
