"""A folder of images, one folder a class."""

from __future__ import annotations

import concurrent.futures
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensordb_data.common.system.machine import cpus
from tensordb_data.errors import MissingExtraError, SchemaError, TensorDBError
from tensordb_data.ingest.source import CHUNK_BYTES, Chunk, row_key
from tensordb_data.schema import Field, Image, Scalar
from tensordb_data.schema.image import is_deep, is_gray

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB

SUFFIXES = (".jpg", ".jpeg", ".png")
_OTHERS = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".tif", ".tiff", ".webp")
_CHUNK_FILES = 1024
_HEADER = 64 << 10  # bytes that hold the header of nearly every image


class ImageFolder:
    """`class/….jpg|jpeg|png`, at any depth: fields `image`, `label` (int), `class` (str) and `path` (str).

    Labels number the classes in alphabetical order; classes that a dataset has already keep their numbers. Images
    right in the folder have no class; then `label` and `class` are left out. Files are kept as they are. They are
    decoded as gray when all of them are gray and as RGB otherwise, so that a mixed folder gives one shape of array
    (transparency is dropped). Each is decoded once here, so that a damaged one is found now.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = sorted(_find(folder, SUFFIXES))
        others = sorted(_find(folder, _OTHERS))
        if not self._files:
            found = f"{len(others)} of other formats, such as {others[0]}: convert them" if others else "none"
            raise SchemaError(f"{folder}: expected images ({', '.join(SUFFIXES)}) in a folder a class, found {found}")
        self.failed = [(str(path), f"{path.suffix} is not read: convert it to JPEG or PNG") for path in others]
        self._sizes = self._measured()
        self._files = list(self._sizes)
        self.total = sum(self._sizes.values())
        self._classes = sorted({path.parts[0] for path in self._files if len(path.parts) > 1})
        if self._classes and (stray := [path for path in self._files if len(path.parts) == 1]):
            self.failed += [(str(path), "is in no class folder, while others are") for path in stray]
            self._files = [path for path in self._files if len(path.parts) > 1]
        self._labels: dict[str, int] = {}

    def keep_labels(self, db: TensorDB, dataset: str) -> None:
        """Let the classes that the dataset has keep their labels."""
        for name in db.data.find({"dataset": dataset, "class": {"$exists": True}}).distinct("class"):
            self._labels[name] = db.data.find({"dataset": dataset, "class": name}, fields=["label"]).first()["label"]

    def schema(self, stored: Mapping[str, Field]) -> dict[str, Field]:
        fields: dict[str, Field] = {"image": stored.get("image") or self._image_field()}
        if self._classes:
            fields |= {"label": Scalar("int"), "class": Scalar("str")}
        return {**fields, "path": Scalar("str")}

    def chunks(self, schema: Mapping[str, Field]) -> Iterator[Chunk]:
        labels = self._numbered()
        with concurrent.futures.ThreadPoolExecutor(cpus(), thread_name_prefix="tensordb-ingest") as pool:
            for paths in self._groups():
                columns: dict[str, list[object]] = {name: [] for name in self.schema(schema)}
                keys = []
                for path, found in zip(paths, pool.map(lambda path: self._read(path, schema), paths), strict=True):
                    if isinstance(found, str):
                        self.failed.append((str(path), found))
                        continue
                    keys.append(row_key(path.as_posix(), 0, found))
                    row: dict[str, object] = {"image": found, "path": path.as_posix()}
                    if self._classes:
                        row |= {"label": labels[path.parts[0]], "class": path.parts[0]}
                    for name, value in row.items():
                        columns[name].append(value)
                yield Chunk(keys, columns, sum(self._sizes[path] for path in paths))

    def _measured(self) -> dict[Path, int]:
        """The sizes of the regular files. Broken links are left out, and so are pipes, which would block."""
        sizes: dict[Path, int] = {}
        for path in self._files:
            try:
                found = (self._folder / path).stat()
            except OSError as error:
                self.failed.append((str(path), error.strerror or str(error)))
                continue
            if stat.S_ISREG(found.st_mode):
                sizes[path] = found.st_size
            else:
                self.failed.append((str(path), "is no regular file"))
        return sizes

    def _read(self, path: Path, schema: Mapping[str, Field]) -> bytes | str:
        """The file's bytes, or why it cannot be used."""
        field = schema["image"]
        try:
            data = (self._folder / path).read_bytes()
            path.as_posix().encode()
            if not isinstance(field, Image):
                raise SchemaError(f"the dataset's field 'image' is {field!r}, not an Image")
            field.encode(data)
            field.decode(data)
        except MissingExtraError:
            return data  # cannot be looked at here, and is kept as it is
        except (TensorDBError, OSError, UnicodeError) as error:
            return str(error)
        return data

    def _numbered(self) -> dict[str, int]:
        labels = dict(self._labels)
        for name in self._classes:
            labels.setdefault(name, max(labels.values(), default=-1) + 1)
        return labels

    def _image_field(self) -> Image:
        kinds = [kind for path in self._files if (kind := self._kind(path)) is not None]
        gray = bool(kinds) and all(gray for gray, _ in kinds)
        deep = bool(kinds) and all(deep for _, deep in kinds)
        return Image("gray" if gray else "rgb", "uint16" if deep else "uint8")

    def _kind(self, path: Path) -> tuple[bool, bool] | None:
        """Whether an image is gray, and whether it has 16 bits a channel; None if its header cannot be read."""
        try:
            with open(self._folder / path, "rb") as file:
                data = file.read(_HEADER)
                if is_gray(data) is None:
                    data += file.read()
        except OSError:
            return None
        gray = is_gray(data)
        return None if gray is None else (gray, is_deep(data))

    def _groups(self) -> Iterator[list[Path]]:
        group: list[Path] = []
        nbytes = 0
        for path in self._files:
            group.append(path)
            nbytes += self._sizes[path]
            if nbytes >= CHUNK_BYTES or len(group) >= _CHUNK_FILES:
                yield group
                group, nbytes = [], 0
        if group:
            yield group


def _find(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(root, name).relative_to(folder)
