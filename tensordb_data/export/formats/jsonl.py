"""Lines of JSON, and a file beside them for each blob that JSON cannot hold."""

from __future__ import annotations

from tensordb_data.export.contents import line
from tensordb_data.export.formats.base import Format, ShardWriter, numbered, shard_name
from tensordb_data.export.names import Names, safe_part
from tensordb_data.export.output import Entry, Output, write_file
from tensordb_data.export.plan import Split
from tensordb_data.export.rows import Row
from tensordb_data.export.work import Shard, WorkFolder
from tensordb_data.schema import Text


class Jsonl(Format):
    """`data/SPLIT-00000-of-00002.jsonl`: a line for each sample. Blobs are paths of files below `files/`."""

    name = "jsonl"
    has_empty_shards = True

    def check_fields(self) -> None:
        self.contents.check_arrays("a file of NumPy")
        names = Names()
        self.parts = {name: names.unique(safe_part(name)) for name in self.contents.blobs}
        """What the files of a field are called after."""

    def check(self, row: Row) -> None:
        self.contents.document(row)

    def open(self, work: WorkFolder, split: Split, number: int, first: int) -> ShardWriter:
        return _Writer(self, work, split, number)

    def finish(self, work: WorkFolder) -> list[Entry]:
        return numbered(work, self.plan.splits, lambda entry: entry.path.startswith("data/"))


class _Writer(ShardWriter):
    def __init__(self, format: Jsonl, work: WorkFolder, split: Split, number: int) -> None:
        super().__init__(work)
        self._format, self._files, self._nbytes = format, list[Entry](), 0
        self._folder = f"files/{split.name}-{number:05d}"
        self._lines = Output(work.files, shard_name(split, number, "jsonl"))

    def add(self, row: Row) -> bool:
        contents = self._format.contents
        nbytes = sum(len(data) for data in row.blobs.values())
        if self.rows and self._nbytes + nbytes > self._format.shard_bytes:
            return False
        doc = contents.document(row)
        for name in contents.blobs:
            if isinstance(contents.fields[name], Text):
                continue
            found = contents.file(row, name)
            if found is None:
                doc[name] = None
                continue
            data, suffix = found
            path = f"{self._folder}/{self.rows:08d}.{self._format.parts[name]}.{suffix}"
            self._files.append(write_file(self._work.files, path, data))
            doc[name] = path
        text = line(doc)
        self._lines.write(text)
        self._nbytes += nbytes + len(text)
        self.rows += 1
        return True

    def close(self, split: int) -> Shard:
        entry = self._lines.entry()
        self._lines.close()
        return Shard(split, self.rows, [entry, *self._files])

    def abort(self) -> None:
        self._lines.close()
