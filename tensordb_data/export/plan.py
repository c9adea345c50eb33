"""The plan of an export: the index documents of its samples, all of one state of the data, in files.

An export may take longer than the server keeps a snapshot. So the documents are read first, under one snapshot, and
each blob is read later, by the reference that stood in its document. Blobs never change, so all is of that state. The
digest of the plan tells whether the same query still finds the same samples with the same values.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bson
import xxhash
import zstandard
from pymongo.errors import OperationFailure

from tensordb_data.common.bson_values import LENIENT
from tensordb_data.common.chunks import batched
from tensordb_data.common.zstd import decompressor
from tensordb_data.errors import BusyError, QueryError, SchemaError, StorageError, TensorDBError
from tensordb_data.export.contents import STANDARD, Contents, Labels, tags_of
from tensordb_data.export.names import Names, safe_part
from tensordb_data.export.rows import Row, fields_of, scalar, stored_rows
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.samples.sample import make_samples
from tensordb_data.schema import Scalar
from tensordb_data.stream.plan.index_snapshot import DataMoved, IndexSnapshot, lacks_snapshot, open_snapshot
from tensordb_data.warehouse.bound_query import BoundQuery, reported
from tensordb_data.warehouse.context import Warehouse

DEFAULT_SPLIT = "split"
UNSPLIT = "train"
"""What files are called where samples have no split, as Hugging Face calls them."""
_NO_VALUE = "unassigned"
_TAKEN = ("manifest.json",)
_MOST_SPLITS = 100
_CHUNK = 256
_ATTEMPTS = 4
_PIECE = 1 << 20

Doc = Mapping[str, Any]


@dataclass
class Split:
    """The samples of one value of the split field; or all samples, where there is none."""

    name: str
    """What its files or folders are called."""
    file: Path
    """The documents of its samples."""
    value: Any = None
    count: int = 0


@dataclass
class Plan:
    """The samples of an export, of one state of the data."""

    warehouse: Warehouse
    contents: Contents
    divided: bool
    """Whether there is a field that divides the samples."""
    splits: list[Split] = field(default_factory=list)
    count: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    """How many samples lack a field."""
    pairs: dict[int, str] | None = None
    """See `Labels`."""
    digest: str = ""
    state: dict[str, list[int]] = field(default_factory=dict)
    """Sequence number and mutation counter of each dataset."""

    def rows(self, split: Split, skip: int = 0) -> Iterator[list[Row]]:
        """The samples of a split with their blobs, without the first `skip`.

        Raises:
            StorageError: A blob cannot be read; of a sample that was deleted, the message says so.
        """
        docs = itertools.islice(_read(split.file), skip, None)
        for some in batched(docs, _CHUNK):
            yield from self._stored(some)

    def _stored(self, docs: Sequence[Doc]) -> Iterator[list[Row]]:
        blobs, done = self.contents.blobs, 0
        try:
            for run in stored_rows(make_samples(self.warehouse, docs), blobs):
                done += len(run)
                yield run
        except StorageError:
            moved = self._relocated(docs[done:])
            if moved is None:
                raise
            yield from stored_rows(make_samples(self.warehouse, moved), blobs)

    def _relocated(self, docs: Sequence[Doc]) -> list[Doc] | None:
        """The documents with the places where a compaction has put their blobs; None if nothing has moved."""
        if any("f" in doc["_tdb"] for doc in docs):  # a frozen set keeps its blobs where they are
            return None
        found = self.warehouse.index["data"].find({"_id": {"$in": [doc["_id"] for doc in docs]}}, {"_tdb": 1})
        now: dict[Any, Doc] = {doc["_id"]: doc["_tdb"] for doc in found}
        for doc in docs:
            if doc["_id"] not in now:
                raise StorageError(
                    f"sample {doc['_id']} of {doc['dataset']!r} was deleted while it was exported, and its blobs are "
                    "gone: make the same call again, which begins anew"
                )
        moved = [_moved(doc, now[doc["_id"]]) for doc in docs]
        return moved if moved != list(docs) else None


def contents_of(bound: BoundQuery, fields: Sequence[str] | None, nan: bool) -> Contents:
    """What to write of each sample.

    Args:
        bound: The query.
        fields: The names to write; None for all of the query, with `_id`, `dataset` and `tags`.
        nan: See `Contents`.

    Raises:
        QueryError: A name is malformed, there twice, or not known.
    """
    if fields is None:
        return Contents(fields_of(bound), nan=nan)
    if isinstance(fields, str) or not all(isinstance(name, str) for name in fields):
        raise QueryError(f"fields is a list of names, such as ['image', 'label']; found {fields!r}")
    if len(set(fields)) < len(fields) or not fields:
        raise QueryError(f"fields names each field once, and one at least; found {list(fields)}")
    return Contents(fields_of(bound, fields), tuple(name for name in STANDARD if name in fields), nan)


def read_plan(
    bound: BoundQuery, contents: Contents, split: str | None, folder: Path, checker: Callable[[], Callable[[Row], None]]
) -> Plan:
    """Read the index documents of a query into files.

    Args:
        bound: The query.
        contents: What is written of each sample.
        split: The field that divides the samples; None for none. That no dataset has the field `split` is no error.
        folder: Where the files are made.
        checker: Makes what is called with each sample, without its blobs, to refuse what cannot be written.

    Raises:
        QueryError: There is no such field to divide by, or it has too many values.
        SchemaError: A value is not of the kind of its field, or the checker refuses it.
        BusyError: The data changes all the time, on a server that has no snapshots.
    """
    divider = None if split is None else _divider(bound, split)
    # a frozen set is of one state, whatever happens to its datasets
    names = selected_datasets(bound.query.filter) if bound.query.frozen is None else []
    use_snapshot = True
    for _ in range(_ATTEMPTS):
        try:
            with open_snapshot(bound.warehouse, names, use_snapshot=use_snapshot) as snapshot:
                plan = _Reader(bound, contents, split, divider, folder, checker()).read(snapshot)
                snapshot.check()
            return plan
        except DataMoved:
            continue
        except (OperationFailure, TensorDBError) as error:
            if not use_snapshot or not lacks_snapshot(error):
                raise
            use_snapshot = False
    raise BusyError("the samples change all the time, and the server gives no snapshot of them: export them when less "
                    "is written")  # fmt: skip


def _divider(bound: BoundQuery, split: str) -> Scalar | None:
    try:
        found = fields_of(bound, [split]).get(split)
    except QueryError:
        if split != DEFAULT_SPLIT:
            raise
        return None
    if not isinstance(found, Scalar) or found.kind not in ("str", "int"):
        if split == DEFAULT_SPLIT:
            return None
        raise QueryError(f"split: expected a field of text or integers, found {split!r}, which is {found!r}")
    return found


def _moved(doc: Doc, now: Doc) -> Doc:
    """A document with the references that its `_tdb` has now.

    Raises:
        StorageError: One is to another value.
    """
    before = doc["_tdb"].get("b") or {}
    blobs = {name: (now.get("b") or {}).get(name, part) for name, part in before.items()}
    for name, part in before.items():
        if blobs[name].get("n") != part.get("n") or now.get("src") != doc["_tdb"].get("src"):
            raise StorageError(f"sample {doc['_id']} of {doc['dataset']!r}, field {name!r}, was changed while it was "
                               "exported: make the same call again, which begins anew")  # fmt: skip
    return {**doc, "_tdb": {**doc["_tdb"], "b": blobs}} if before else doc


class _Reader:
    """Reads a plan from one state of the index."""

    def __init__(
        self,
        bound: BoundQuery,
        contents: Contents,
        split: str | None,
        divider: Scalar | None,
        folder: Path,
        check: Callable[[Row], None],
    ) -> None:
        self._bound, self._contents, self._check, self._folder = bound, contents, check, folder
        self._split, self._divider = split, divider
        self._hash = xxhash.xxh3_128()
        self._plan = Plan(bound.warehouse, contents, divider is not None, missing=dict.fromkeys(contents.fields, 0))
        self._names = Names(_TAKEN)
        self._splits: dict[Any, tuple[Split, Any]] = {}
        self._labels = Labels(contents.scalars)

    def read(self, snapshot: IndexSnapshot) -> Plan:
        """The plan; its files are complete when this returns."""
        for old in self._folder.glob("*.plan"):
            old.unlink()
        with contextlib.ExitStack() as files:
            for doc in self._documents(snapshot):
                split, writer = self._of(doc, files)
                writer.write(bson.encode(doc))
                split.count += 1
            if not self._splits:
                self._new(None, UNSPLIT, files)
        plan = self._plan
        plan.splits = [split for split, _ in self._splits.values()]
        plan.count = sum(split.count for split in plan.splits)
        plan.digest = self._hash.hexdigest()
        plan.state = {name: list(version) for name, version in sorted(snapshot.versions.items())}
        plan.pairs = self._labels.pairs
        return plan

    def _documents(self, snapshot: IndexSnapshot) -> Iterator[Doc]:
        with (
            reported(self._bound.query),
            contextlib.closing(self._bound.cursor(self._projection, session=snapshot.session)) as cursor,
        ):
            for docs in batched(cursor, _CHUNK):
                for doc, sample in zip(docs, make_samples(self._bound.warehouse, docs), strict=True):
                    self._observe(doc, Row(sample, {}))
                    yield doc

    @property
    def _projection(self) -> dict[str, int]:
        names = {*self._contents.scalars, "dataset", "tags", "_tdb.p", "_tdb.s", "_tdb.src"}
        blobs = {f"_tdb.b.{name}" for name in self._contents.blobs}
        return dict.fromkeys(sorted({*names, *blobs} | ({self._split} if self._divider and self._split else set())), 1)

    def _observe(self, doc: Doc, row: Row) -> None:
        plan, references = self._plan, doc["_tdb"].get("b") or {}
        for name, each in self._contents.fields.items():
            value = scalar(row, name, each) if isinstance(each, Scalar) else references.get(name)
            plan.missing[name] += value is None
        self._labels.observe(row)
        if "tags" in self._contents.standard:
            tags_of(row)
        self._check(row)
        own = doc["_tdb"]
        blobs = {name: [part.get("n"), part.get("z")] for name, part in sorted(references.items())}
        known = {name: doc[name] for name in sorted(doc) if name != "_tdb"}
        self._hash.update(bson.encode({**known, "_tdb": {"s": own.get("s"), "src": own.get("src"), "b": blobs}}))

    def _of(self, doc: Doc, files: contextlib.ExitStack) -> tuple[Split, Any]:
        value = doc.get(self._split or "") if self._divider is not None else None
        found = self._splits.get(value)
        if found is not None:
            return found
        if self._divider is not None and not isinstance(value, (str, int, float, type(None))):
            raise SchemaError(f"sample {doc['_id']} of {doc['dataset']!r}: expected text or an integer in the field "
                              f"{self._split!r} that divides the export, found {value!r:.60}")  # fmt: skip
        name = UNSPLIT if self._divider is None else _NO_VALUE if value is None else _split_name(value)
        return self._new(value, name, files)

    def _new(self, value: Any, name: str, files: contextlib.ExitStack) -> tuple[Split, Any]:
        if len(self._splits) == _MOST_SPLITS:
            raise QueryError(f"split: the field {self._split!r} has more than {_MOST_SPLITS} values: name another one, "
                             "or split=None")  # fmt: skip
        split = Split(self._names.unique(name), self._folder / f"{len(self._splits)}.plan", value)
        file = files.enter_context(open(split.file, "wb"))  # noqa: SIM115
        compressor = zstandard.ZstdCompressor(level=1)
        self._splits[value] = split, files.enter_context(compressor.stream_writer(file, closefd=False))
        return self._splits[value]


def _split_name(value: Any) -> str:
    """A value as the name of a split that Hugging Face takes: letters, digits, `_`, and dots within."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    found = "".join(char if char.isalnum() or char in "._" else "_" for char in safe_part(text))
    return ".".join(part for part in found.split(".") if part) or "_"


def _read(file: Path) -> Iterator[dict[str, Any]]:
    rest = bytearray()
    with open(file, "rb") as source, decompressor().stream_reader(source, read_across_frames=True) as reader:
        while piece := reader.read(_PIECE):
            rest += piece
            at = 0
            while len(rest) - at >= 4 and len(rest) - at >= (size := int.from_bytes(rest[at : at + 4], "little")):
                yield bson.decode(bytes(rest[at : at + size]), LENIENT)
                at += size
            del rest[:at]
