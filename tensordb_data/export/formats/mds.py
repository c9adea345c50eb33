"""MDS, the format of MosaicML Streaming: shards of samples with a table of their offsets, and `index.json`.

u32 n | u32 offset[n + 1], from the beginning of the file | JSON | samples
sample: u32 size of each value whose size varies | all values, in the order of their names
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.export.contents import iso, tags_of
from tensordb_data.export.formats.base import Format, ShardWriter, place, too_large
from tensordb_data.export.names import suffix_of
from tensordb_data.export.output import Entry, Output, append_file, write_file
from tensordb_data.export.plan import Plan, Split
from tensordb_data.export.rows import Row, scalar
from tensordb_data.export.work import Shard, WorkFolder
from tensordb_data.schema import Array, Bytes, Scalar, Text
from tensordb_data.schema.array import numpy_dtype

_LARGEST = (1 << 32) - 1
_SIZES = {"int": 8, "float64": 8}
_ARRAYS = {"uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64"}
_SCALARS = {"int": "int", "float": "float64", "str": "str", "datetime": "str", "bool": "json", "json": "json"}


class Mds(Format):
    """`SPLIT/index.json` and `SPLIT/shard.00000.mds`; without a split, right in the folder.

    MDS has no missing values. Index fields in which some are missing are JSON, with `null` for them.
    """

    name = "mds"
    usual_bytes = 64 << 20

    def check_fields(self) -> None:
        if self.shard_bytes > _LARGEST:
            raise QueryError(f"shard_bytes: a shard of MDS has less than 4 GiB; found {self.shard_bytes:,}")
        for name, field in self.contents.fields.items():
            if isinstance(field, Array) and field.dtype not in _ARRAYS:
                raise QueryError(f"field {name!r}: MDS has no arrays of {field.dtype}; leave it out with fields=")

    def check(self, row: Row) -> None:
        for name, field in self.contents.scalars.items():
            if field.kind == "json":
                self.contents.value(row, name, field)

    def begin(self, plan: Plan, work: WorkFolder) -> None:
        super().begin(plan, work)
        for name in self.contents.blobs:
            if plan.missing[name]:
                raise SchemaError(
                    f"field {name!r} is missing in {plan.missing[name]:,} samples, and MDS has no missing values: "
                    f"select those that have it, {{{name!r}: {{'$ne': None}}}}, or leave the field out with fields="
                )
        first = next((row for split in plan.splits for run in plan.rows(split) for row in run), None)
        found = {name: "json" if name == "tags" else "str" for name in self.contents.standard}
        found |= {name: self._encoding(name, first) for name in self.contents.fields}
        self.encodings = dict(sorted(found.items()))
        self.sizes = {name: self._size(name) for name in self.encodings}
        config = {**self.columns(), "compression": None, "format": "mds", "hashes": ["xxh3_64"],
                  "size_limit": self.shard_bytes, "version": 2}  # fmt: skip
        self.config = json.dumps(config, sort_keys=True).encode()

    def columns(self) -> dict[str, Any]:
        """The names, encodings and sizes of the columns, as `index.json` has them."""
        return {"column_names": list(self.encodings), "column_encodings": list(self.encodings.values()),
                "column_sizes": list(self.sizes.values())}  # fmt: skip

    def _encoding(self, name: str, first: Row | None) -> str:
        field = self.contents.fields[name]
        if isinstance(field, Scalar):
            return "json" if self.plan.missing[name] else _SCALARS[field.kind]
        if isinstance(field, Array):
            shape = field.fixed_shape
            return f"ndarray:{field.dtype}" + (f":{','.join(map(str, shape))}" if shape and all(shape) else "")
        if isinstance(field, (Bytes, Text)):
            return "str" if isinstance(field, Text) else "bytes"
        suffix = "" if first is None else suffix_of(first.blobs[name])
        return {"jpg": "jpeg", "png": "png"}.get(suffix, "bytes")

    def _size(self, name: str) -> int | None:
        field = self.contents.fields.get(name)
        if isinstance(field, Array):
            return field.fixed_nbytes if self.encodings[name].count(":") == 2 else None
        return _SIZES.get(self.encodings[name])

    def values(self, row: Row) -> list[bytes]:
        """The encoded values of a sample, in the order of their names.

        Raises:
            SchemaError: It is an array that MDS does not have.
        """
        return [self._value(row, name, encoding) for name, encoding in self.encodings.items()]

    def _value(self, row: Row, name: str, encoding: str) -> bytes:
        field = self.contents.fields.get(name)
        if field is None:
            own = {"_id": str(row.sample.id), "dataset": row.sample.dataset}
            return json.dumps(tags_of(row)).encode() if name == "tags" else own[name].encode()
        if isinstance(field, Scalar):
            if encoding == "json":
                return json.dumps(self.contents.value(row, name, field), ensure_ascii=False).encode()
            value = scalar(row, name, field)
            if field.kind == "int":
                return struct.pack("<q", value)
            if field.kind == "float":
                return struct.pack("<d", value)
            return (iso(value) if field.kind == "datetime" else str(value)).encode()
        stored = row.blobs[name]
        if not isinstance(field, Array) or encoding.count(":") == 2:
            return bytes(stored)
        array = field.decode(stored)
        if array.ndim == 0 or array.size == 0 or array.ndim > 63:
            raise SchemaError(f"{place(row)}, field {name!r}: expected an array with elements and 1 to 63 dimensions, "
                              f"as MDS has, found the shape {array.shape}; leave it out with fields=")  # fmt: skip
        code = next(code for code, bits in enumerate((8, 16, 32, 64)) if max(array.shape) < 1 << bits)
        head = bytes([array.ndim << 2 | code]) + np.array(array.shape, f"<u{1 << code}").tobytes()
        return head + array.astype(numpy_dtype(field.dtype).newbyteorder("<")).tobytes()

    def open(self, work: WorkFolder, split: Split, number: int, first: int) -> ShardWriter:
        return _Writer(self, work, f"{self._folder(split)}shard.{number:05d}.mds", f"{split.name}-{number:05d}")

    def _folder(self, split: Split) -> str:
        return f"{split.name}/" if self.plan.divided else ""

    def finish(self, work: WorkFolder) -> list[Entry]:
        entries = super().finish(work)
        for number, split in enumerate(self.plan.splits):
            path = f"{self._folder(split)}index.json"
            (work.files / path).unlink(missing_ok=True)
            shards = [self._listed(shard) for shard in work.shards if shard.split == number]
            entries.append(write_file(work.files, path, json.dumps({"shards": shards, "version": 2}).encode()))
        return entries

    def _listed(self, shard: Shard) -> dict[str, Any]:
        entry = shard.files[0]
        raw = {"basename": entry.path.rpartition("/")[2], "bytes": entry.bytes, "hashes": {"xxh3_64": entry.xxh3}}
        return {**self.columns(), "compression": None, "format": "mds", "hashes": ["xxh3_64"], "raw_data": raw,
                "samples": shard.rows, "size_limit": self.shard_bytes, "version": 2, "zip_data": None}  # fmt: skip


class _Writer(ShardWriter):
    def __init__(self, format: Mds, work: WorkFolder, path: str, part: str) -> None:
        super().__init__(work)
        self._format, self._path = format, path
        self._ends = [0]
        self._body = Output(work.parts, part)

    def add(self, row: Row) -> bool:
        values = self._format.values(row)
        sizes = [len(value) for value, size in zip(values, self._format.sizes.values(), strict=True) if size is None]
        nbytes = 4 * len(sizes) + sum(map(len, values))
        total = 8 + 4 * (self.rows + 1) + len(self._format.config) + self._ends[-1] + nbytes
        if self.rows and total > self._format.shard_bytes:
            return False
        if total > _LARGEST:
            raise too_large(row, f"it has {nbytes:,} bytes, and a shard of MDS less than 4 GiB")
        self._body.write(b"".join((struct.pack(f"<{len(sizes)}I", *sizes), *values)))
        self._ends.append(self._ends[-1] + nbytes)
        self.rows += 1
        return True

    def close(self, split: int) -> Shard:
        self._body.close()
        head = 4 + 4 * len(self._ends) + len(self._format.config)
        body = self._work.parts / self._body.path
        with Output(self._work.files, self._path) as output:
            output.write(struct.pack("<I", self.rows) + (np.array(self._ends, np.int64) + head).astype("<u4").tobytes())
            output.write(self._format.config)
            append_file(output, body)
            entry = output.entry()
        body.unlink()
        return Shard(split, self.rows, [entry])

    def abort(self) -> None:
        self._body.close()
