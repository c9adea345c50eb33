"""COCO: instances, keypoints, captions, and panoptic segmentations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError

IMAGE = ("id", "file_name", "width", "height")
"""What is known of each image; other keys of it are fields too."""


@dataclass
class CocoImage:
    """An image of a file of annotations."""

    id: int
    file_name: str
    width: int | None
    height: int | None
    extra: dict[str, Any]
    """Its other keys."""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    segments_file: str | None = None
    """The PNG whose colours are the ids of segments, of a panoptic segmentation."""


@dataclass
class CocoFile:
    """A file of annotations."""

    images: list[CocoImage]
    is_panoptic: bool
    dropped: int
    """Annotations of images that are not in the file."""
    failed: list[tuple[str, str]]
    """Images that cannot be taken, and why."""
    unnamed: int
    """Categories without a name. Their class is their id."""


def read_coco(file: BinaryIO) -> CocoFile:
    """Read a file of annotations.

    Categories are numbered from 0 on in the order of their ids, as `label`. Ids, boxes, polygons and masks stay as they
    are. An image without annotations is there too.

    Raises:
        CorruptBlobError: It is none.
    """
    try:
        doc = json.load(file)
        categories = _categories(doc.get("categories") or [])
        failed: dict[Any, str] = {}
        images = [image for entry in doc["images"] if (image := _taken(entry, failed)) is not None]
        by_id = {image.id: image for image in images}
        if len(by_id) < len(images):
            raise CorruptBlobError("two images have one id")
        annotations = doc.get("annotations") or []
        panoptic = any("segments_info" in entry for entry in annotations)
        dropped = 0
        for entry in annotations:
            image = by_id.get(entry.get("image_id"))
            if image is None:
                dropped += 1
            elif (why := _unnamed(entry, categories)) is not None:
                failed[image.id] = why
            elif panoptic:
                image.annotations += [_annotation(segment, categories) for segment in entry["segments_info"]]
                image.segments_file = str(entry["file_name"])
            else:
                image.annotations.append(_annotation(entry, categories))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptBlobError(f"expected a file of COCO annotations, found something else: {error!r:.200}") from None
    good = [image for image in images if image.id not in failed]
    unnamed = sum("name" not in entry for entry in doc.get("categories") or [])
    return CocoFile(good, panoptic, dropped, [(f"image {id}", why) for id, why in failed.items()], unnamed)


def _taken(entry: Mapping[str, Any], failed: dict[Any, str]) -> CocoImage | None:
    """An image; None if it has no id of its own or no file, which is noted."""
    try:
        return _image(entry)
    except (KeyError, CorruptBlobError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        failed[f"{entry.get('id')!r:.40}, {entry.get('file_name')!r:.80}"] = missing
        return None


def _unnamed(entry: Mapping[str, Any], categories: Mapping[int, Any]) -> str | None:
    """Why the categories of an annotation are none of the file."""
    for one in entry.get("segments_info", [entry]):
        category = one.get("category_id")
        if category is not None and category not in categories:
            return f"annotation {one.get('id')!r:.40} is of category {category!r:.40}: not named"
    return None


def _categories(entries: list[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    found = {}
    for label, entry in enumerate(sorted(entries, key=lambda entry: _id(entry["id"]))):
        more = {"supercategory": entry["supercategory"]} if entry.get("supercategory") else {}
        found[entry["id"]] = {"label": label, "class": str(entry.get("name", entry["id"])), **more}
    return found


def _image(entry: Mapping[str, Any]) -> CocoImage:
    size = [None if entry.get(name) is None else int(entry[name]) for name in ("width", "height")]
    extra = {name: value for name, value in entry.items() if name not in IMAGE}
    return CocoImage(_id(entry["id"]), str(entry["file_name"]), size[0], size[1], extra)


def _annotation(entry: Mapping[str, Any], categories: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    out = {name: value for name, value in entry.items() if name != "image_id"}
    category = entry.get("category_id")
    if category is not None:
        out |= categories[category]
    return out


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise CorruptBlobError(f"expected integers as ids, found {value!r:.60}")
    return value


def panoptic_ids(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """The ids of segments in the pixels of a panoptic PNG: R + 256 G + 65536 B.

    Args:
        pixels: uint8 [height, width, 3], RGB.

    Returns:
        uint32 [height, width]; 0 is no segment.
    """
    wide = pixels.astype(np.uint32)
    return np.asarray(wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2], np.uint32)


def mask_of(rle: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """The mask that runs describe, as COCO has them: down the columns, zeros first.

    Args:
        rle: `size`, height and width, and `counts`: a list of lengths, or these as text.

    Returns:
        uint8 [height, width] of 0 and 1.

    Raises:
        CorruptBlobError: The runs do not fill the mask.
    """
    height, width = (int(size) for size in rle["size"])
    counts = rle["counts"]
    runs = list(_counts(counts)) if isinstance(counts, (str, bytes)) else [int(count) for count in counts]
    if sum(runs) != height * width or any(run < 0 for run in runs):
        raise CorruptBlobError(f"expected runs of {height * width:,} pixels in all, found {sum(runs):,}")
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return np.asarray(np.repeat(values, runs).reshape(width, height).T, np.uint8)


def _counts(text: str | bytes) -> Iterator[int]:
    """Runs that are written as text: five bits a character, and from the third on as differences."""
    data = text.encode() if isinstance(text, str) else text
    found: list[int] = []
    at = 0
    while at < len(data):
        value = shift = 0
        while True:
            if at == len(data) or not 48 <= data[at] < 112:
                raise CorruptBlobError("expected runs as COCO writes them, found other text")
            part = data[at] - 48
            at += 1
            value |= (part & 31) << shift
            shift += 5
            if not part & 32:
                break
        if part & 16:
            value -= 1 << shift
        found.append(value + found[-2] if len(found) > 2 else value)
    return iter(found)
