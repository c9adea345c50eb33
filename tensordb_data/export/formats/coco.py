"""COCO: images, and one file of annotations for each split."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.export.contents import line
from tensordb_data.export.formats.base import FolderShard, Format, ShardWriter, lines_of, place, renamed
from tensordb_data.export.names import Names, safe_path, suffix_of
from tensordb_data.export.output import Entry, Output
from tensordb_data.export.plan import Plan, Split
from tensordb_data.export.rows import Row, scalar
from tensordb_data.export.work import WorkFolder
from tensordb_data.schema import Scalar, Text
from tensordb_data.schema.image import image_size

_ANNOTATIONS, _IMAGE_ID = "annotations", "image_id"
_DERIVED = ("label", "class", "supercategory")
"""What an importer has added to each annotation, out of the categories."""


class Coco(Format):
    """`images/SPLIT/…` and `annotations/instances_SPLIT.json`; without a split, `annotations/instances.json`.

    The annotations of an image are a JSON field `annotations`: a list of dicts, as COCO has them, with `class` for the
    name of their category. Their ids stay, as that of the image in the field `image_id`; where there are none, they
    are numbered. Boxes and masks are not touched. Other index fields go with their image.
    """

    name = "coco"

    def check_fields(self) -> None:
        fields, media = self.contents.fields, self.contents.media
        if len(media) != 1:
            raise QueryError(f"format 'coco' needs one image, found {', '.join(media) or 'none'}: name the fields, "
                             "fields=['image', 'annotations', ...]")  # fmt: skip
        self.main = media[0]
        others = [name for name in self.contents.blobs if name not in media and not isinstance(fields[name], Text)]
        self.refuse_blobs(others, "COCO has no such values")
        found = fields.get(_ANNOTATIONS)
        if not isinstance(found, Scalar) or found.kind != "json":
            raise QueryError("format 'coco' needs a field 'annotations' of JSON, a list of dicts with bbox and "
                             f"category_id; found {found!r}")  # fmt: skip
        self._field = found

    def checker(self) -> Callable[[Row], None]:
        self._images: set[int] = set()
        self._ids: set[int] = set()
        self._categories: dict[int, dict[str, Any]] = {}
        self._unnumbered: set[str] = set()
        return self.check

    def check(self, row: Row) -> None:
        self.contents.document(row)
        if row.sample.stored_bytes(self.main) == 0:
            raise SchemaError(f"{place(row)} has no {self.main!r}, and COCO is about images: select those that have "
                              f"one, {{{self.main!r}: {{'$ne': None}}}}")  # fmt: skip
        if (id := self._given_id(row)) is not None:
            self._keep(row, id, self._images, "image_id")
        for annotation in self._annotations(row):
            if "id" in annotation:
                self._keep(row, annotation["id"], self._ids, "id of an annotation")
            self._categorize(row, annotation)

    def _annotations(self, row: Row) -> list[Mapping[str, Any]]:
        found = row.sample.get(_ANNOTATIONS)
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise SchemaError(f"{place(row)}, field 'annotations': expected a list of dicts, found {found!r:.80}")
        return found

    def _given_id(self, row: Row) -> int | None:
        field = self.contents.scalars.get(_IMAGE_ID)
        return scalar(row, _IMAGE_ID, field) if field is not None and field.kind == "int" else None

    @staticmethod
    def _keep(row: Row, id: Any, ids: set[int], what: str) -> None:
        if not isinstance(id, int) or isinstance(id, bool):
            raise SchemaError(f"{place(row)}: expected an integer as {what}, found {id!r:.60}")
        if id in ids:
            raise SchemaError(f"{place(row)}: the {what} {id} is there twice, and COCO needs it once: export one "
                              "dataset at a time, or leave the field out with fields=")  # fmt: skip
        ids.add(id)

    def _categorize(self, row: Row, annotation: Mapping[str, Any]) -> None:
        id, name = annotation.get("category_id"), annotation.get("class")
        if id is None and isinstance(name, str):
            self._unnumbered.add(name)
            return
        if not isinstance(id, int) or isinstance(id, bool):
            raise SchemaError(f"{place(row)}: expected a category_id or a class in each annotation, found "
                              f"{dict(annotation)!r:.200}")  # fmt: skip
        found: dict[str, Any] = {"id": int(id), "name": str(id) if name is None else name}
        if "supercategory" in annotation:
            found["supercategory"] = annotation["supercategory"]
        known = self._categories.setdefault(id, found)
        if known["name"] != found["name"]:
            raise SchemaError(f"{place(row)}: category {id} is {found['name']!r}, and {known['name']!r} elsewhere: "
                              "export one dataset at a time")  # fmt: skip

    def begin(self, plan: Plan, work: WorkFolder) -> None:
        super().begin(plan, work)
        names = {category["name"]: id for id, category in self._categories.items()}
        free = max(self._categories, default=0)
        for name in sorted(self._unnumbered - names.keys()):
            free += 1
            names[name] = free
            self._categories[free] = {"id": free, "name": name}
        self._numbers = names
        self._names = {
            split.name: Names(doc["image"]["file_name"] for doc in lines_of(work, number))
            for number, split in enumerate(plan.splits)
        }

    def entry(self, row: Row, split: Split, number: int) -> dict[str, Any]:
        """The entry of an image."""
        given = self.contents.name_of(row)
        path = (safe_path(given) if given else None) or f"{number:012d}.{suffix_of(row.blobs[self.main])}"
        path = self._names[split.name].unique(path)
        doc = self.contents.document(row)
        doc.pop(_ANNOTATIONS)
        given_id = self._given_id(row)
        height, width = image_size(row.blobs[self.main])
        width, height = doc.get("width") or width, doc.get("height") or height
        if not width or not height:
            raise SchemaError(f"{place(row)}: its size is not known, which COCO needs; add fields width and height")
        doc.pop(_IMAGE_ID, None)
        doc |= {"id": max(self._images, default=-1) + 1 + number if given_id is None else given_id,
                "width": width, "height": height}  # fmt: skip
        return renamed(doc, path)

    def annotations(self, row: Row, image: int) -> list[dict[str, Any]]:
        """The entries of the annotations of an image; those without an id get one at the end."""
        found = []
        for annotation in self.contents.value(row, _ANNOTATIONS, self._field) or []:
            id = annotation.get("category_id")
            id = self._numbers[annotation["class"]] if id is None else id
            kept = {name: value for name, value in annotation.items() if name not in _DERIVED}
            found.append({**kept, "image_id": image, "category_id": id})
        return found

    def open(self, work: WorkFolder, split: Split, number: int, first: int) -> ShardWriter:
        return _Writer(self, work, split, number, first)

    def root(self, split: Split) -> str:
        """The folder of the images of a split, with `/` at its end."""
        return f"images/{split.name}/" if self.plan.divided else "images/"

    def finish(self, work: WorkFolder) -> list[Entry]:
        entries = super().finish(work)
        self._free = max(self._ids, default=0)
        for number, split in enumerate(self.plan.splits):
            path = f"annotations/instances_{split.name}.json" if self.plan.divided else "annotations/instances.json"
            (work.files / path).unlink(missing_ok=True)
            with Output(work.files, path) as output:
                output.write(b'{"info": {"description": "an export of tensordb-data"},\n"licenses": [],\n"images": [')
                _write_items(output, (doc["image"] for doc in lines_of(work, number)))
                output.write(b'],\n"annotations": [')
                each = itertools.chain.from_iterable(doc[_ANNOTATIONS] for doc in lines_of(work, number))
                _write_items(output, map(self._numbered, each))
                categories = [category for _, category in sorted(self._categories.items())]
                output.write(b'],\n"categories": ' + line({"": categories})[5:-2] + b"}\n")
                entries.append(output.entry())
        return entries

    def _numbered(self, annotation: dict[str, Any]) -> dict[str, Any]:
        if "id" in annotation:
            return annotation
        self._free += 1
        return {"id": self._free, **annotation}


def _write_items(output: Output, docs: Iterator[dict[str, Any]]) -> None:
    for number, doc in enumerate(docs):
        output.write((b",\n" if number else b"\n") + line(doc)[:-1])


class _Writer(FolderShard):
    def __init__(self, format: Coco, work: WorkFolder, split: Split, number: int, first: int) -> None:
        super().__init__(work, f"{split.name}-{number:05d}", format.shard_bytes)
        self._format, self._split, self._first = format, split, first

    def add(self, row: Row) -> bool:
        if self.is_full(row):
            return False
        image = self._format.entry(row, self._split, self._first + self.rows)
        self.write(self._format.root(self._split) + image["file_name"], row.blobs[self._format.main])
        self.line(line({"image": image, _ANNOTATIONS: self._format.annotations(row, image["id"])}))
        return True
