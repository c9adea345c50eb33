"""WebDataset: tar files, in which the members of a sample have one name and different suffixes."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import Any

from tensordb_data.errors import QueryError
from tensordb_data.export.contents import line
from tensordb_data.export.formats.base import Format, ShardWriter, numbered, shard_name
from tensordb_data.export.output import Entry, Output
from tensordb_data.export.plan import Split
from tensordb_data.export.rows import Row
from tensordb_data.export.work import Shard, WorkFolder
from tensordb_data.schema import Text

_BLOCK = 512
_BUFFER = 1 << 20
_JSON = "json"


class WebDataset(Format):
    """`data/SPLIT-00000-of-00002.tar`: of each sample a member for each blob, and one of JSON with its other fields.

    The image field has the suffix of its format. Other blobs have the name of their field before it.
    """

    name = "webdataset"
    usual_bytes = 1 << 30
    has_empty_shards = True

    def check_fields(self) -> None:
        self.contents.check_arrays("a file of NumPy")
        folded: dict[str, str] = {}
        for name in self.contents.blobs:
            if "/" in name or "\\" in name:
                raise QueryError(f"field {name!r}: no member of a tar file is called that; leave it out with fields=")
            other = folded.setdefault(name.lower(), name)
            if other != name:
                raise QueryError(f"fields {other!r} and {name!r} have one suffix in a WebDataset, which does not look "
                                 "at case: leave one out with fields=")  # fmt: skip
        media = self.contents.media
        self.main = "image" if "image" in media else media[0] if len(media) == 1 else None

    def check(self, row: Row) -> None:
        self.contents.document(row)

    def open(self, work: WorkFolder, split: Split, number: int, first: int) -> ShardWriter:
        return _Writer(self, work, split, number, first)

    def finish(self, work: WorkFolder) -> list[Entry]:
        return numbered(work, self.plan.splits, lambda entry: True)

    def members(self, row: Row) -> list[tuple[str, Any]]:
        """The suffix and the bytes of each member of a sample."""
        found = []
        for name in self.contents.blobs:
            if isinstance(self.contents.fields[name], Text):  # it is in the JSON
                continue
            if (file := self.contents.file(row, name)) is not None:
                found.append((file[1] if name == self.main else f"{name}.{file[1]}", file[0]))
        return [*found, (_JSON, line(self.contents.document(row)).rstrip(b"\n"))]


class _Writer(ShardWriter):
    def __init__(self, format: WebDataset, work: WorkFolder, split: Split, number: int, first: int) -> None:
        super().__init__(work)
        self._format, self._first = format, first
        self._output = Output(work.files, shard_name(split, number, "tar"))
        self._buffer = io.BufferedWriter(self._output, _BUFFER)
        # Its headers are USTAR, and those of PAX are added for names that USTAR cannot hold.
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, row: Row) -> bool:
        members = self._format.members(row)
        nbytes = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for _, data in members)
        if self.rows and self._tar.offset + nbytes > self._format.shard_bytes:
            return False
        for suffix, data in members:
            info = tarfile.TarInfo(f"{self._first + self.rows:08d}.{suffix}")
            info.size, info.mtime, info.mode = len(data), 0, 0o644
            self._tar.addfile(info, io.BytesIO(data))
        self.rows += 1
        return True

    def close(self, split: int) -> Shard:
        self._tar.close()
        self._buffer.flush()
        entry = self._output.entry()
        self._buffer.close()
        return Shard(split, self.rows, [entry])

    def abort(self) -> None:
        for each in (self._buffer, self._output):  # what is in the buffer may not fit on the disk
            with contextlib.suppress(OSError, ValueError):
                each.close()
