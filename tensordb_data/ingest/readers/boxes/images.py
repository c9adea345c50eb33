"""The images that annotations are about: where they are, and how large."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError
from tensordb_data.schema import Field, Image, Scalar
from tensordb_data.schema.image import image_size

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_HEADER = 256 << 10


class Images:
    """A local folder of images.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        """Width and height of an image, by its header; None if it does not say.

        Raises:
            SchemaError: It cannot be read, or is not below the folder.
        """
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                height, width = image_size(file.read(_HEADER))
        except OSError as error:
            raise SchemaError(f"{path}: {error.strerror or error}") from None
        return (width, height) if width and height else None


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
