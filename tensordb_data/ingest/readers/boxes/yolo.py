"""YOLO: a text file for each image, and `data.yaml`, which names the classes and where the images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensordb_data.errors import CorruptBlobError, MissingExtraError

_MOST = 16 << 20


@dataclass(frozen=True)
class YoloConfig:
    """What `data.yaml` says."""

    names: Mapping[int, str]
    path: str
    """The folder of the images, relative to that of the file."""
    splits: Mapping[str, Sequence[str]]
    """Folders, or lists of images, by split."""
    keypoints: tuple[int, int] | None
    """How many keypoints an object has, and numbers for each: 2, or 3 with visibility."""


def read_config(data: bytes) -> YoloConfig:
    """Read `data.yaml`.

    Raises:
        CorruptBlobError: It is none.
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("data.yaml needs PyYAML: pip install pyyaml") from None
    try:
        if len(data) > _MOST or (b"&" in data and b"*" in data):  # aliases grow without end
            raise CorruptBlobError("expected the data.yaml of YOLO, found anchors and aliases, or a very large file")
        doc = yaml.safe_load(data)
        names = doc["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        classes = {int(number): str(name) for number, name in pairs}
        splits = {name: _listed(doc[name]) for name in ("train", "val", "test") if doc.get(name)}
        shape = doc.get("kpt_shape")
        keypoints = None if shape is None else (int(shape[0]), int(shape[1]))
        if keypoints is not None and (keypoints[0] < 1 or keypoints[1] not in (2, 3)):
            raise CorruptBlobError(f"kpt_shape: expected [number, 2 or 3], found {shape!r:.60}")
        return YoloConfig(classes, str(doc.get("path") or "."), splits, keypoints)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, CorruptBlobError):
            raise
        raise CorruptBlobError(f"expected the data.yaml of YOLO: {error!r:.200}") from None


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    raise CorruptBlobError(f"expected a folder, or a list of folders, found {value!r:.60}")


def label_path(image: str) -> str:
    """Where the text file of an image is: `images/` becomes `labels/`, the last of them, and the suffix `.txt`."""
    folders = image.split("/")
    for at in range(len(folders) - 2, -1, -1):
        if folders[at] == "images":
            folders[at] = "labels"
            break
    stem, dot, _ = folders[-1].rpartition(".")
    folders[-1] = f"{stem if dot else folders[-1]}.txt"
    return "/".join(folders)


def read_labels(text: str, width: int, height: int, config: YoloConfig) -> list[dict[str, Any]]:
    """The objects of an image.

    A line is a class and, as shares of width and height: the middle and the size of a box; or a box and keypoints, if
    `data.yaml` says so; or the corners of a polygon.

    Args:
        text: The text file; empty where the image shows nothing.
        width: Of the image, in pixels.
        height: Of the image.
        config: What `data.yaml` says.

    Raises:
        CorruptBlobError: A line is none of these, or its class has no name.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_object(line.split(), width, height, config))
        except (ValueError, CorruptBlobError) as error:
            raise CorruptBlobError(f"line {number}: {error}") from None
    return found


def _object(parts: list[str], width: int, height: int, config: YoloConfig) -> dict[str, Any]:
    values = [float(part) for part in parts[1:]]
    if not all(-1e6 < value < 1e6 for value in values):
        raise CorruptBlobError(f"expected shares of the image, found {' '.join(parts)!r:.80}")
    label = float(parts[0])
    if not label.is_integer() or int(label) not in config.names:
        raise CorruptBlobError(f"expected the number of one of {len(config.names)} classes, found {parts[0]!r:.40}")
    out: dict[str, Any] = {"label": int(label), "class": config.names[int(label)]}
    if len(values) == 4:
        return {**out, "bbox": _box(values, width, height)}
    points = config.keypoints
    if points is not None and len(values) == 4 + points[0] * points[1]:
        return {**out, "bbox": _box(values[:4], width, height), **_keypoints(values[4:], points[1], width, height)}
    if points is None and len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        flat = [value for pair in zip(xs, ys, strict=True) for value in pair]
        return {**out, "bbox": box, "segmentation": [flat]}
    expected = "5 numbers, or a class and a polygon" if points is None else f"5 or {5 + points[0] * points[1]} numbers"
    raise CorruptBlobError(f"expected {expected}, found {len(parts)}")


def _box(values: Sequence[float], width: int, height: int) -> list[float]:
    x, y, w, h = values
    return [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]


def _keypoints(values: Sequence[float], step: int, width: int, height: int) -> dict[str, Any]:
    """Keypoints as COCO has them: x, y and visibility of each. Those at 0, 0 are not labelled."""
    flat: list[float] = []
    for at in range(0, len(values), step):
        x, y = values[at] * width, values[at + 1] * height
        seen = int(values[at + 2]) if step == 3 else 2 * bool(x or y)
        flat += [x, y, seen]
    return {"keypoints": flat, "num_keypoints": sum(seen > 0 for seen in flat[2::3])}
