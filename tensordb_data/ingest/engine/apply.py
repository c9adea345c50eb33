"""Write rows: add those that are new, update those that have changed, and leave the others as they are.

All of it is one transaction, with the note that files are in. Its segment is durable before that. So whatever is
killed, a row is in or not, and a file that is noted is in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import Binary, ObjectId

from tensordb_data.blobs.segments.reference_format import ReferenceBuilder
from tensordb_data.errors import DuplicateError
from tensordb_data.ingest.engine.prepare import Prepared, names_digest, taken
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.changes.apply import STAMP
from tensordb_data.samples.changes.each import note_updates
from tensordb_data.samples.columns import Column
from tensordb_data.samples.commit import TooLarge, commit
from tensordb_data.samples.existing.replaced import new_reference, note_replaced
from tensordb_data.samples.write_batch import WriteBatch
from tensordb_data.schema import BlobField
from tensordb_data.schema.schema import PROVENANCE, Schema

if TYPE_CHECKING:
    from tensordb_data.ingest.options import OnChange
    from tensordb_data.ingest.report import Report
    from tensordb_data.warehouse.context import Warehouse

_ATTEMPTS = 10

Doc = dict[str, Any]


class _Moved(Exception):
    """Another process has changed a sample since it was looked at."""


@dataclasses.dataclass
class _Sorted:
    """What becomes of some rows."""

    new: list[int]
    changed: dict[int, Doc]
    """The stored sample, by row."""
    same: int
    elsewhere: dict[ObjectId, Doc]
    """Samples that come from another place now, or had none: what `_tdb.src` becomes."""
    refused: dict[int, str]


class Applier:
    """Writes rows into one dataset.

    Args:
        warehouse: The warehouse.
        dataset: The dataset, which exists.
        schema: The schema of the rows.
        source: The id of their source.
        on_change: What happens to samples whose rows have changed.
        report: Counts what was done.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        dataset: str,
        schema: Schema,
        source: str,
        on_change: OnChange,
        report: Report,
        *,
        dry_run: bool,
    ) -> None:
        self._warehouse, self._dataset, self._schema, self._source = warehouse, dataset, schema, source
        self._on_change, self._report, self._dry = on_change, report, dry_run
        self.old_ids: Callable[[bytes], ObjectId] | None = None
        """Makes the `_id`s of version 0.1, as long as the dataset has samples of that time."""
        self.adopted = False
        """Whether samples of that time have been taken over: their `_id` is not what it would be today."""
        self._known: dict[ObjectId, ObjectId] = {}
        """The `_id`s of samples that were looked at last, where they are not the identities of their rows."""

    def stored(self, ids: Sequence[ObjectId]) -> dict[ObjectId, Doc]:
        """The samples of some identities, by these."""
        data = self._warehouse.index["data"]
        wanted = {"dataset": 1, "_tdb": 1}
        found = {doc["_id"]: doc for doc in read_all(data.find({"_id": {"$in": list(ids)}}, wanted))}
        if self.adopted:
            taken_over = data.find({"_tdb.p": self._warehouse.project, "_tdb.src.a": {"$in": list(ids)}}, wanted)
            found.update({doc["_tdb"]["src"]["a"]: doc for doc in read_all(taken_over)})
        return found

    def apply(
        self, rows: Prepared, ids: Sequence[ObjectId], files: Sequence[int] | None, also: Callable[[Any], None] | None
    ) -> list[ObjectId]:
        """Write some rows.

        Args:
            rows: The rows.
            ids: Their identities, all different.
            files: A number for the file of each; None if the identity of a row says where it is from.
            also: What else takes place in the transaction.

        Returns:
            The `_id` of the sample of each row that is in.
        """
        for _ in range(_ATTEMPTS):
            found = self._sorted(rows, ids, files)
            if self._dry:
                self._count(rows, found)
                return [id for row, id in enumerate(ids) if row not in found.refused]
            try:
                # Files with rows that are refused are not noted as read: the next ingest says so again.
                self._write(rows, ids, files, found, None if found.refused else also)
            except (DuplicateError, _Moved):
                continue  # another process was faster: look again
            except TooLarge:
                half = len(rows) // 2
                one, two = some_rows(rows, range(half)), some_rows(rows, range(half, len(rows)))
                first = self.apply(one, ids[:half], files and files[:half], None)
                return first + self.apply(two, ids[half:], files and files[half:], also)
            self._count(rows, found)
            refused = {ids[row] for row in found.refused}
            there = {row: doc["_id"] for row, doc in found.changed.items()}
            return [there.get(row, self._known.get(id, id)) for row, id in enumerate(ids) if id not in refused]
        raise DuplicateError(
            f"dataset {self._dataset!r}: another process keeps adding or changing the same samples; run it again"
        )

    def enter(self, also: Callable[[Any], None]) -> None:
        """Do something in a transaction of its own, if the dataset is still what it was."""
        batch = WriteBatch(self._warehouse.project, self._dataset, self._schema, None)
        commit(self._warehouse, self._dataset, self._schema, batch, also=lambda session, _: also(session))

    def _count(self, rows: Prepared, found: _Sorted) -> None:
        self._report.added += len(found.new)
        self._report.updated += len(found.changed)
        self._report.unchanged += found.same
        for row, why in sorted(found.refused.items()):
            self._report.fail(rows.where[row], why)

    def _sorted(self, rows: Prepared, ids: Sequence[ObjectId], files: Sequence[int] | None) -> _Sorted:
        stored = self.stored(ids)
        old = self._of_old_ids(rows, ids, stored)
        self._known = {id: doc["_id"] for id, doc in stored.items() if doc["_id"] != id}
        out = _Sorted([], {}, 0, {}, {})
        for row, id in enumerate(ids):
            doc = stored.get(id)
            if doc is None:
                out.new.append(row)
                continue
            if doc["_tdb"]["p"] != self._warehouse.project or doc["dataset"] != self._dataset:
                out.refused[row] = f"its sample {id} was moved to dataset {doc['dataset']!r}"
                continue
            before = doc["_tdb"].get("src")
            now = self._origin(rows, row, files)
            if id in old:
                now["a"] = id
            # The `_id` says that the content is the same, of version 0.1 and where rows are known by it. A sample with
            # a key that another door has written may have any content.
            same = id in old or rows.keys is None if before is None else bytes(before["h"]) == rows.hashes[row]
            if same:
                out.same += 1
                if before is None or (before.get("s"), before.get("f")) != (now.get("s"), now.get("f")):
                    out.elsewhere[doc["_id"]] = {**now, **({"a": before["a"]} if before and "a" in before else {})}
            elif self._on_change == "update":
                out.changed[row] = doc
            elif self._on_change == "skip":
                out.same += 1
            else:
                out.refused[row] = f"it differs from sample {doc['_id']}, and on_change is 'error'"
        return out

    def _of_old_ids(self, rows: Prepared, ids: Sequence[ObjectId], stored: dict[ObjectId, Doc]) -> set[ObjectId]:
        """Find rows among the samples of version 0.1, whose `_id`s were made in another way; they are put to the
        others.
        """
        if self.old_ids is None or rows.old_keys is None:
            return set()
        new = {self.old_ids(key): id for key, id in zip(rows.old_keys(), ids, strict=True) if id not in stored}
        wanted = {"_id": {"$in": list(new)}, "_tdb.src": {"$exists": False}}
        found = read_all(self._warehouse.index["data"].find(wanted, {"dataset": 1, "_tdb": 1}))
        stored.update({new[doc["_id"]]: doc for doc in found})
        self.adopted |= bool(found)
        return {new[doc["_id"]] for doc in found}

    def _origin(self, rows: Prepared, row: int, files: Sequence[int] | None) -> Doc:
        """`_tdb.src` of a row: source, key, file, and digests of what it gives."""
        out: Doc = {"s": self._source, "h": Binary(rows.hashes[row])}
        if rows.keys is not None:
            out["k"] = Binary(rows.keys[row])
        if rows.parts is not None:
            out["c"] = Binary(rows.parts[row])
        if files is not None:
            out["f"] = files[row]
        return out

    def _write(
        self,
        rows: Prepared,
        ids: Sequence[ObjectId],
        files: Sequence[int] | None,
        found: _Sorted,
        also: Callable[[Any], None] | None,
    ) -> None:
        if not found.new and not found.changed and not found.elsewhere and also is None:
            return
        batch = WriteBatch(self._warehouse.project, self._dataset, self._schema, None, builder=ReferenceBuilder)
        self._add(batch, rows, found.new, [ids[row] for row in found.new])
        for row, doc in zip(found.new, batch.docs, strict=True):
            self._internals(doc, rows, row, files)
        changes = self._changes(batch, rows, files, found.changed)

        def body(session: Any, counter: int) -> None:
            self._replace(changes, counter, session)
            data = self._warehouse.index["data"]
            for id, origin in found.elsewhere.items():
                data.update_one({"_id": id}, {"$set": {"_tdb.src": origin}}, session=session)
            if also is not None:
                also(session)

        # With the schema by which the rows were encoded: the commit sees if the dataset has been widened since.
        commit(self._warehouse, self._dataset, self._schema, batch, also=body, source=self._source)
        if isinstance(batch.builder, ReferenceBuilder):
            self._report.referenced += batch.builder.referenced
            self._report.copied += batch.builder.copied

    def _add(self, batch: WriteBatch, rows: Prepared, which: Sequence[int], ids: Sequence[ObjectId]) -> None:
        """Add rows to a batch, whose values are encoded already."""
        if which:
            columns = {
                name: Column(self._dataset, name, self._schema[name], taken(values, which))
                for name, values in rows.columns.items()
            }
            batch.add_columns(ids, [[] for _ in which], columns)

    def _internals(self, doc: Doc, rows: Prepared, row: int, files: Sequence[int] | None) -> None:
        doc["_tdb"]["src"] = self._origin(rows, row, files)
        if row in rows.damaged:
            doc["_tdb"]["damaged"] = rows.damaged[row]

    # Samples that exist

    def _changes(
        self, batch: WriteBatch, rows: Prepared, files: Sequence[int] | None, changed: Mapping[int, Doc]
    ) -> list[tuple[Doc, Doc, list[str]]]:
        """Put changed samples into a batch: the sample as it was and as it will be, and the fields that change.

        A field that the source gives as before is left alone: people may have given it another value since. A blob
        that is the same keeps its place.
        """
        out: list[tuple[Doc, Doc, list[str]]] = []
        whole = {"_id": {"$in": [doc["_id"] for doc in changed.values()]}}
        stored = {doc["_id"]: doc for doc in read_all(self._warehouse.index["data"].find(whole))} if changed else {}
        n = len(batch)
        for row, seen in changed.items():
            before = stored.get(seen["_id"])
            if before is None or before["_tdb"] != seen["_tdb"]:
                raise _Moved
            names = self._changed_fields(rows, row, before)
            self._add(batch, some_rows(rows, [row], names), [0], [before["_id"]])
            given = batch.docs.pop()
            self._internals(given, rows, row, files)
            if "a" in (origin := before["_tdb"].get("src", {})):
                given["_tdb"]["src"]["a"] = origin["a"]
            out.append((before, self._after(before, given, names), names))
        batch.docs = batch.docs[:n]
        batch.replaced = [after for _, after, _ in out]
        return out

    def _changed_fields(self, rows: Prepared, row: int, before: Doc) -> list[str]:
        names = sorted(rows.columns)
        was, now = before["_tdb"].get("src", {}).get("c"), rows.parts[row] if rows.parts is not None else None
        if was is None or now is None or bytes(was[:8]) != names_digest(names) or len(was) != len(now):
            return names
        return [name for i, name in enumerate(names, 1) if bytes(was[8 * i : 8 * i + 8]) != now[8 * i : 8 * i + 8]]

    def _after(self, before: Doc, given: Doc, names: Sequence[str]) -> Doc:
        """A sample as it will be."""
        kept = {name: value for name, value in before.items() if name not in names}
        scalars = {name: given[name] for name in names if name in given}
        blobs = {name: part for name, part in before["_tdb"].get("b", {}).items() if name not in names}
        internals = {name: value for name, value in before["_tdb"].items() if name not in ("b", "damaged")}
        internals.update({name: value for name, value in given["_tdb"].items() if name not in ("b", "s")})
        if blobs := {**blobs, **given["_tdb"].get("b", {})}:
            internals["b"] = blobs
        return {**kept, **scalars, "_tdb": internals}

    def _replace(self, changes: Sequence[tuple[Doc, Doc, list[str]]], counter: int, session: Any) -> None:
        """In a transaction: give samples their new values.

        A stream whose plan is older never gives another picture to the label that it has; see `samples/existing/`.
        """
        old: list[Doc] = []
        updates = []
        for before, after, names in changes:
            to_set: Doc = {f"_tdb.{name}": value for name, value in after["_tdb"].items() if name in ("src", "damaged")}
            to_unset: Doc = {} if "damaged" in after["_tdb"] else {"_tdb.damaged": ""}
            where: Doc = {"_id": before["_id"], "_tdb.src": before["_tdb"].get("src")}
            for name in names:
                blob = isinstance(self._schema[name], BlobField)
                path = f"_tdb.b.{name}" if blob else name
                value = after["_tdb"].get("b", {}).get(name) if blob else after.get(name)
                part = before["_tdb"].get("b", {}).get(name) if blob else None
                if part is not None:
                    where[path] = part
                    old.append(part)
                # A value from the source no longer counts as an annotation.
                to_unset[f"{PROVENANCE}.{name}"] = ""
                if value is None:
                    to_unset[path] = ""
                elif blob:
                    to_set[path] = new_reference(value, part, counter)
                else:
                    to_set[path] = value
            updates.append((where, {"$set": {**to_set, STAMP: counter}, "$unset": to_unset}))
        if not updates:
            return
        write = note_updates(self._warehouse, self._dataset, updates, counter, self._source, session)
        if self._warehouse.index.update_each("data", updates, session) != len(updates):
            raise _Moved
        write()
        note_replaced(self._warehouse, old, counter, session)


def some_rows(rows: Prepared, which: Sequence[int], names: Sequence[str] | None = None) -> Prepared:
    """Some of the rows, with some of their fields."""
    columns = {name: taken(column, which) for name, column in rows.columns.items() if names is None or name in names}

    def pick(values: list[Any] | None) -> Any:
        return None if values is None else [values[row] for row in which]

    make = rows.old_keys
    old = None if make is None else lambda: pick(make())
    damaged = {new: rows.damaged[row] for new, row in enumerate(which) if row in rows.damaged}
    return Prepared(
        columns, pick(rows.where), pick(rows.keys), pick(rows.hashes), pick(rows.parts), damaged, old, pick(rows.places)
    )
