"""Pascal VOC: an XML file for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from tensordb_data.errors import CorruptBlobError

_MOST = 64 << 20
_FLAGS = ("difficult", "truncated", "occluded")


@dataclass
class VocImage:
    """What the XML file of an image says."""

    file_name: str | None
    width: int | None
    height: int | None
    objects: list[dict[str, Any]]


def read_voc(data: bytes) -> VocImage:
    """Read the XML file of an image.

    VOC counts pixels from 1 on, and its last pixel belongs to the box. So x is xmin - 1, and the width
    xmax - xmin + 1. Fractions stay.

    Raises:
        CorruptBlobError: It is none; or it declares entities, which no such file does.
    """
    plain = data.replace(b"\0", b"")  # as it may be UTF-16
    if len(data) > _MOST or b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise CorruptBlobError("expected the annotations of an image, found XML with declarations, or a very large one")
    try:
        root = ElementTree.fromstring(data)
        if root.tag != "annotation":
            raise CorruptBlobError(f"expected the element annotation, found {root.tag!r:.40}")
        objects = [_object(element) for element in root.iter("object")]
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        if isinstance(error, CorruptBlobError):
            raise
        raise CorruptBlobError(f"expected the annotations of an image: {error}") from None
    size = root.find("size")
    width, height = (None if size is None else _whole(size.findtext(name)) for name in ("width", "height"))
    return VocImage((root.findtext("filename") or "").strip() or None, width or None, height or None, objects)


def _object(element: ElementTree.Element) -> dict[str, Any]:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise CorruptBlobError("an object has no name")
    out: dict[str, Any] = {"class": name, "bbox": _box(element)}
    for flag in _FLAGS:
        if (text := element.findtext(flag)) is not None:
            out[flag] = _whole(text)
    if pose := (element.findtext("pose") or "").strip():
        out["pose"] = pose
    if parts := [_object(part) for part in element.findall("part")]:
        out["parts"] = parts
    return out


def _box(element: ElementTree.Element) -> list[float]:
    box = element.find("bndbox")
    if box is None:
        raise CorruptBlobError("an object has no bndbox")
    xmin, ymin, xmax, ymax = (_number(box.findtext(name), name) for name in ("xmin", "ymin", "xmax", "ymax"))
    return [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]


def _number(text: str | None, name: str) -> float:
    value = float(text or "nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise CorruptBlobError(f"expected a number as {name}, found {text!r:.40}")
    return int(value) if value.is_integer() else value


def _whole(text: str | None) -> int | None:
    if not (text or "").strip():
        return None
    return int(_number(text, "a number"))
