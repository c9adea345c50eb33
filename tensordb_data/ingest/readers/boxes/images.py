"""The images that annotations are about: where they are, and how large."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import CorruptBlobError, SchemaError
from tensordb_data.schema import Field, Image, Scalar
from tensordb_data.schema.image import image_size
from tensordb_data.schema.orientation import is_turned, orientation

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_HEADER = 256 << 10


class Images:
    """A local folder of images.

    Args:
        folder: The folder.
        field: How the images are decoded.
    """

    def __init__(self, folder: Path, field: Field | None = None) -> None:
        self.folder = folder
        self.orient = isinstance(field, Image) and field.orient

    def path(self, name: str) -> Path:
        """The path of an image.

        Raises:
            SchemaError: It is not below the folder.
        """
        path = Path(os.path.normpath(self.folder / name))
        if not name or "\0" in name or not path.is_relative_to(os.path.normpath(self.folder)):
            raise SchemaError(f"expected an image below {self.folder}, found {name!r:.200}")
        return path

    def size(self, name: str) -> tuple[int, int] | None:
        """Width and height of an image as it is delivered, by its header; None if it does not say.

        Raises:
            SchemaError: It cannot be read, or is not below the folder.
        """
        size, turned = self._header(name)
        return size[::-1] if size is not None and turned and self.orient else size

    def check(self, name: str, width: int | None, height: int | None) -> None:
        """Refuse annotations that were made for an image of another size, or for one that is turned otherwise.

        Args:
            name: The image.
            width: What its annotations say; None if nothing.
            height: The same.

        Raises:
            SchemaError: It cannot be read, or is not below the folder.
            CorruptBlobError: The annotations are for another image.
        """
        size, turned = self._header(name)
        if size is None or width is None or height is None:
            return
        said = (width, height)
        if said not in (size, size[::-1]):
            raise CorruptBlobError(f"has {size[0]} x {size[1]} pixels; its annotations are for {width} x {height}")
        if turned and said != (size[::-1] if self.orient else size):
            raise CorruptBlobError(
                f"its EXIF orientation turns it on its side, and its annotations are for {width} x {height} pixels,"
                f" {'before' if self.orient else 'after'} that: give"
                f" types={{'image': Image('rgb'{'' if self.orient else ', orient=True'})}}"
            )

    def _header(self, name: str) -> tuple[tuple[int, int] | None, bool]:
        """Width and height of the pixels that are stored, and whether they are to be turned on their side."""
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                head = file.read(_HEADER)
        except OSError as error:
            raise SchemaError(f"{path}: {error.strerror or error}") from None
        height, width = image_size(head)
        return (width, height) if width and height else None, is_turned(orientation(head))


def local_folder(given: Given, what: str) -> Path:
    """The folder of the source.

    Raises:
        SchemaError: It is not on this machine.
    """
    folder = given.files.folder
    if folder is None:
        raise SchemaError(f"{given.files.root}: {what} are read from folders of this machine: copy them to one")
    return folder


def first_folder(candidates: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first of some folders that has one of some images."""
    some = list(names)
    return next((folder for folder in candidates if any(os.path.isfile(folder / name) for name in some)), None)


def annotation_fields(wanted: Mapping[str, Field], **more: Field) -> dict[str, Field]:
    """The fields that all annotated images have, and more."""
    fields: dict[str, Field] = {
        "image": Image("rgb"), "width": Scalar("int"), "height": Scalar("int"), "annotations": Scalar("json"), **more,
    }  # fmt: skip
    return {name: wanted.get(name) or field for name, field in fields.items()}


def numbered(objects: Iterable[dict[str, Any]], labels: Mapping[str, int]) -> list[dict[str, Any]]:
    """Objects with the numbers of their classes."""
    return [{"label": labels[each["class"]], **each} for each in objects]
