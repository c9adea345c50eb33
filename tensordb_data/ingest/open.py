"""The source that a place or a value is."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from tensordb_data.errors import MissingExtraError, SchemaError, TensorDBError
from tensordb_data.ingest.registry import BUILT_IN, MEDIA, Reader, others, reader_named

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given
    from tensordb_data.ingest.source import FileInfo, Source

IMAGES = (".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
          ".ppm", ".tif", ".tiff", ".webp")  # fmt: skip
_HEAD = 4096
_ABOUT = ("index.json", "manifest.json", "dataset_info.json", "features.json")
"""Files about the others beside them, which tell no format."""
_PART = re.compile(r"-\d{5}-of-\d{5}$")


def open_source(given: Given) -> Source:
    """The source that the user gave, by `format=`, or by what it is.

    Raises:
        SchemaError: No reader takes it.
    """
    if given.reading.format is not None:
        return reader_named(given.reading.format).open(given)
    if not given.is_place:
        return _in_memory(given)
    files = given.files.files
    if not files:
        raise SchemaError(f"{given.source}: expected files, found none that can be read")
    name = _by_names(files) or _by_content(given, files)
    if name is not None:
        return BUILT_IN[name].open(given)
    for found, reader in others():
        try:
            if _takes(given, reader, files):
                return reader.open(given)
        except MissingExtraError as error:
            given.report.note(f"format {found!r}: {error}")
    suffixes = ", ".join(sorted({_suffix(file) or "no suffix" for file in files})[:10])
    notes = "".join(f"; {note}" for note in given.report.notes)
    raise SchemaError(
        f"{given.source}: expected a folder of images, audio, video or volumes, or a file or folder of"
        f" one of the formats {', '.join(BUILT_IN)}, found {suffixes}; name the reader with format= if the suffix does"
        f" not tell{notes}"
    )


def _in_memory(given: Given) -> Source:
    from tensordb_data.ingest.readers.frames import is_table, open_frame
    from tensordb_data.ingest.readers.iterables import open_rows

    return open_frame(given) if is_table(given.source) else open_rows(given)


def _by_names(files: list[FileInfo]) -> str | None:
    names = {file.name for file in files}
    for name, reader in BUILT_IN.items():
        if any(mark in names for mark in reader.marks):
            return name
    counts: Counter[str] = Counter()
    for file in files:
        lower = _PART.sub("", file.name.lower())
        if lower.rpartition("/")[2] in _ABOUT:
            continue
        if lower.endswith(IMAGES):
            counts["images"] += 1
        for name, reader in BUILT_IN.items():
            if reader.suffixes and lower.endswith(reader.suffixes):
                counts[name] += 1
                break
    media = {name: counts[name] for name in MEDIA if counts[name]}
    if media:  # tables beside images and their like are about them
        return max(media, key=lambda name: media[name])
    return counts.most_common(1)[0][0] if counts else None


def _by_content(given: Given, files: list[FileInfo]) -> str | None:
    try:
        head = _head(given, files[0])
    except TensorDBError:
        return None
    if _is_image(head):
        return "images"
    for name, reader in BUILT_IN.items():
        if reader.sniff is not None and reader.sniff(head):
            return name
    return None


def _takes(given: Given, reader: Reader, files: list[FileInfo]) -> bool:
    if reader.suffixes and any(file.name.lower().endswith(reader.suffixes) for file in files):
        return True
    return reader.sniff is not None and reader.sniff(_head(given, files[0]))


def _head(given: Given, file: FileInfo) -> bytes:
    with given.open(file) as opened:
        return opened.read(_HEAD)


def _is_image(head: bytes) -> bool:
    from tensordb_data.schema.image import is_image

    return is_image(head)


def _suffix(file: FileInfo) -> str:
    name = file.name.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""
