"""A folder of images, with their other fields in `metadata.jsonl`, as `imagefolder` of Hugging Face reads it."""

from __future__ import annotations

from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.export.contents import line
from tensordb_data.export.formats.base import FolderShard, Format, ShardWriter, lines_of, parts_of, place, renamed
from tensordb_data.export.names import Names, safe_part, safe_path, suffix_of, with_suffix
from tensordb_data.export.output import Entry, Output, append_file
from tensordb_data.export.plan import Plan, Split
from tensordb_data.export.rows import Row, scalar
from tensordb_data.export.work import MANIFEST, WorkFolder
from tensordb_data.schema import Text

METADATA = "metadata.jsonl"


class Folder(Format):
    """`SPLIT/CLASS/00000000.png` and `SPLIT/metadata.jsonl`, without the levels that the samples do not have.

    An image is called as the sample says in its field `file_name` or `path`, as far as a file can be called that. A
    further image is `NAME_file_name` in the metadata. Other blobs are files too; texts are in the metadata.
    """

    name = "folder"

    def check_fields(self) -> None:
        media = self.contents.media
        if not media:
            raise QueryError(f"format 'folder' needs an image; the fields are {', '.join(self.contents.fields)}")
        self.contents.check_arrays("a file of NumPy")
        self.main = "image" if "image" in media else media[0]
        self.others = [name for name in self.contents.blobs
                       if name != self.main and not isinstance(self.contents.fields[name], Text)]  # fmt: skip
        self.keys = {name: f"{name}_file_name" if name in media else name for name in self.others}
        taken = {*self.contents.fields, "original_file_name"} - set(self.keys)
        if clash := [key for name, key in self.keys.items() if key in taken]:
            raise QueryError(f"field {clash[0]!r} has the name that the metadata needs for a file; leave it out with "
                             "fields=")  # fmt: skip

    def check(self, row: Row) -> None:
        self.contents.document(row)
        if row.sample.stored_bytes(self.main) == 0:
            raise SchemaError(f"{place(row)} has no {self.main!r}, and each sample of a folder is a file: select those "
                              f"that have one, {{{self.main!r}: {{'$ne': None}}}}")  # fmt: skip

    def begin(self, plan: Plan, work: WorkFolder) -> None:
        super().begin(plan, work)
        self._names: dict[str, Names] = {}
        self._classes: dict[str, str] = {}
        self._class_names = Names()
        taken: dict[str, list[str]] = {split.name: [METADATA, MANIFEST] for split in plan.splits}
        for number, split in enumerate(plan.splits):
            for doc in lines_of(work, number):
                taken[split.name] += [doc[key] for key in ("file_name", *self.keys.values()) if doc.get(key)]
                if isinstance(given := doc.get("class"), str):
                    self.folder_of(given)
        self._names = {name: Names(paths) for name, paths in taken.items()}

    def folder_of(self, given: str) -> str:
        """The folder of a class."""
        if given not in self._classes:
            self._classes[given] = self._class_names.unique(safe_part(given))
        return self._classes[given]

    def root(self, split: Split) -> str:
        """The folder of a split, with `/` at its end."""
        return f"{split.name}/" if self.plan.divided else ""

    def place_of(self, row: Row, split: Split, number: int) -> str:
        """Where the file of a sample is, below its split."""
        given = self.contents.name_of(row)
        path = (safe_path(given) if given else None) or f"{number:08d}"
        named = self.contents.scalars.get("class")
        kind = scalar(row, "class", named) if named is not None and named.kind == "str" else None
        if self.plan.divided and path.startswith(f"{split.name}/"):
            path = path[len(split.name) + 1 :]
        if kind is not None:
            folder = self.folder_of(kind)
            path = path if path.startswith(f"{folder}/") else f"{folder}/{path}"
        suffix = suffix_of(row.blobs[self.main])
        path = path if suffix == "bin" else with_suffix(path, suffix)
        return self._names[split.name].unique(path)

    def other(self, path: str, split: Split) -> str:
        """The path, or another one that is free, of a further file."""
        return self._names[split.name].unique(path)

    def open(self, work: WorkFolder, split: Split, number: int, first: int) -> ShardWriter:
        return _Writer(self, work, split, number, first)

    def finish(self, work: WorkFolder) -> list[Entry]:
        entries = super().finish(work)
        for number, split in enumerate(self.plan.splits):
            path = f"{self.root(split)}{METADATA}"
            (work.files / path).unlink(missing_ok=True)
            with Output(work.files, path) as output:
                for part in parts_of(work, number):
                    append_file(output, part)
                entries.append(output.entry())
        return entries


class _Writer(FolderShard):
    def __init__(self, format: Folder, work: WorkFolder, split: Split, number: int, first: int) -> None:
        super().__init__(work, f"{split.name}-{number:05d}", format.shard_bytes)
        self._format, self._split, self._first = format, split, first

    def add(self, row: Row) -> bool:
        if self.is_full(row):
            return False
        format, split = self._format, self._split
        path = format.place_of(row, split, self._first + self.rows)
        self.write(format.root(split) + path, row.blobs[format.main])
        doc = renamed(format.contents.document(row), path)
        for name in format.others:
            found = format.contents.file(row, name)
            if found is None:
                doc[format.keys[name]] = None
                continue
            doc[format.keys[name]] = format.other(f"{path}.{safe_part(name)}.{found[1]}", split)
            self.write(format.root(split) + doc[format.keys[name]], found[0])
        self.line(line(doc))
        return True
