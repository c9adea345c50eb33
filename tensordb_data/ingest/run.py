"""Ingest a source. Rows that the dataset has already are skipped, so that an ingest can be repeated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from bson import ObjectId

from tensordb_data.common.bson_values import plain
from tensordb_data.errors import DuplicateError, SchemaError
from tensordb_data.ingest.image_folder import ImageFolder
from tensordb_data.ingest.open import open_source
from tensordb_data.ingest.source import Chunk
from tensordb_data.schema import Field, infer

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB
    from tensordb_data.samples.writer import Writer

_ATTEMPTS = 10


@dataclasses.dataclass
class Report:
    """What an ingest did."""

    added: int = 0
    skipped: int = 0
    """Samples that existed already."""
    failed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """The name of each file or row that could not be read, and the reason."""


def ingest(
    db: TensorDB,
    source: str | os.PathLike[str],
    dataset: str,
    *,
    set: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, Report], None] | None = None,
) -> Report:
    """Add the samples of an image folder (`class/….jpg|png`), or of a CSV, Parquet or NPZ file, to a dataset.

    The `_id` of a sample is a function of project, dataset, `set`, and its place and content in the source. So a second
    run, or two runs at once, add nothing twice. A run that was interrupted goes on where it was.

    Args:
        db: The warehouse.
        source: A folder or file.
        dataset: Name of the dataset. It is made if it does not exist.
        set: Fields that every sample gets, such as `{"split": "train"}`.
        progress: Called now and then with the bytes done, the bytes in all, and the report so far.

    Returns:
        How many samples were added and skipped, and what could not be read.

    Raises:
        SchemaError: The source is of an unknown kind, or does not fit the dataset.
    """
    path = Path(source)
    fixed = plain(dict(set or {}), lambda message: SchemaError(f"set: {message}"))
    opened = open_source(path)
    stored: Mapping[str, Field] = db.data.schema(dataset) or {}
    if isinstance(opened, ImageFolder) and "class" in stored:
        opened.keep_labels(db, dataset)
    if clash := [name for name in fixed if name in opened.schema(stored)]:
        raise SchemaError(f"set: the source has a field {clash[0]!r} of its own; choose another name")
    fields = {**opened.schema(stored), **{name: stored.get(name) or infer(value) for name, value in fixed.items()}}
    for name, field in stored.items():
        if name not in fields and not field.optional:
            raise SchemaError(f"{path} has no field {name!r}, which every sample of dataset {dataset!r} has; "
                              "choose another dataset, or give one value to all samples with set=")  # fmt: skip
    schema = {name: _fitted(name, field, stored) for name, field in fields.items()}
    salt = repr((db.project, dataset, sorted(fixed.items()))).encode()
    report, done = Report(failed=opened.failed), 0
    with db.data.writer(dataset, schema=schema, flush_every=None) as writer:
        for chunk in opened.chunks(schema):
            _add(db, writer, chunk, fixed, [_id(salt, key) for key in chunk.keys], report)
            done += chunk.nbytes
            if progress is not None:
                progress(done, opened.total, report)
    return report


def _fitted(name: str, field: Field, stored: Mapping[str, Field]) -> Field:
    """The field of the dataset, or a new one. A new field is optional if there are samples without it."""
    found = stored.get(name)
    if found is not None:
        return found
    return dataclasses.replace(field, optional=True) if stored else field


def _add(
    db: TensorDB, writer: Writer, chunk: Chunk, fixed: Mapping[str, Any], ids: list[ObjectId], report: Report
) -> None:
    for _ in range(_ATTEMPTS):
        found = db.warehouse.index["data"].find({"_id": {"$in": ids}}, {"_id": 1})
        there = {doc["_id"] for doc in found}
        rows = [row for row, id in enumerate(ids) if id not in there]
        try:
            if rows:
                columns = {name: _take(column, rows) for name, column in chunk.columns.items()}
                repeated = {name: [value] * len(rows) for name, value in fixed.items()}
                writer.add_many(_id=[ids[row] for row in rows], **columns, **repeated)
                writer.flush()
        except DuplicateError:
            continue  # another ingest of the same source was faster: look again
        report.added += len(rows)
        report.skipped += len(ids) - len(rows)
        return
    raise DuplicateError(f"dataset {writer.dataset!r}: another process keeps adding the same samples; run it again")


def _take(column: Any, rows: Sequence[int]) -> Any:
    if isinstance(column, np.ndarray):
        return column if len(rows) == len(column) else column[rows]
    return [column[row] for row in rows]


def _id(salt: bytes, key: bytes) -> ObjectId:
    return ObjectId(xxhash.xxh3_128_digest(salt + key)[:12])
