"""What the folders of images mean: split, class, or the images and their masks. It is decided once, for all files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

SPLITS = frozenset(("dev", "eval", "evaluation", "holdout", "test", "testing", "train", "training", "val", "valid",
                    "validation", "unlabeled", "unlabelled", "extra"))  # fmt: skip
_IMAGES = frozenset(("image", "images", "img", "imgs", "jpegimages", "rgb"))
_MASKS = frozenset(("mask", "masks", "segmentation", "segmentations", "segmentationclass"))


@dataclass(frozen=True)
class Place:
    """What the path of an image says."""

    split: str | None = None
    label: str | None = None
    """The name of its class."""
    mask: str | None = None
    """The path of its mask."""


@dataclass(frozen=True)
class Layout:
    """What the folders of a source mean.

    Attributes:
        places: What each image is, by its path.
        classes: The names of the classes, in order.
        has_split: Whether a level of folders are splits.
        has_masks: Whether images have masks.
    """

    places: Mapping[str, Place]
    classes: Sequence[str]
    has_split: bool
    has_masks: bool


def find_layout(names: Sequence[str], fail: Callable[[str, str], None], *, split: bool, label: bool) -> Layout:
    """Decide what folders mean.

    A level of which all names are those of splits is the split, and the first other level is the class. A level of
    folders of images and folders of masks pairs them: a mask has the path of its image, but for this folder and the
    suffix.

    Args:
        names: The paths of all images, with slashes.
        fail: Called with path and reason for each that does not fit in.
        split: Whether splits are looked for.
        label: Whether classes are.
    """
    parts = {name: PurePosixPath(name).parts[:-1] for name in names}
    masks, level = _masks(parts, fail)
    if level is not None:
        parts = {name: (*folders[:level], *folders[level + 1 :]) for name, folders in parts.items()
                 if folders[level].lower() in _IMAGES}  # fmt: skip
    at = _split_level(list(parts.values())) if split else None
    class_at = 1 if at == 0 else 0
    with_class = {name: folders for name, folders in parts.items() if len(folders) > class_at and class_at != at}
    places: dict[str, Place] = {}
    classes: set[str] = set()
    for name, folders in parts.items():
        found = None
        if label and with_class:
            if name not in with_class:
                fail(name, "is in no class folder, while others are")
                continue
            found = folders[class_at]
            classes.add(found)
        places[name] = Place(None if at is None else folders[at], found, masks.get(name))
    return Layout(places, sorted(classes), at is not None, bool(masks))


def _split_level(folders: Sequence[tuple[str, ...]]) -> int | None:
    for level in (0, 1):
        if folders and all(len(parts) > level and parts[level].lower() in SPLITS for parts in folders):
            return level
    return None


def _masks(parts: Mapping[str, tuple[str, ...]], fail: Callable[[str, str], None]) -> tuple[dict[str, str], int | None]:
    """The mask of each image, and the level of folders that tells them apart; None if none does."""
    for level in range(3):
        found = {folders[level].lower() if len(folders) > level else "" for folders in parts.values()}
        if found <= _IMAGES | _MASKS and found & _IMAGES and found & _MASKS:
            break
    else:
        return {}, None
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    for name, folders in parts.items():
        path = PurePosixPath(name)
        stem = "/".join((*folders[:level], *folders[level + 1 :], path.stem))
        (images if folders[level].lower() in _IMAGES else masks).setdefault(stem, []).append(name)
    of: dict[str, str] = {}
    for stem, names in masks.items():
        if stem not in images:
            fail(names[0], "is a mask, and no image has its name")
        elif len(names) + len(images[stem]) > 2:
            fail(names[0], f"expected one image and one mask of a name, found {', '.join([*images[stem], *names])}")
        else:
            of[images[stem][0]] = names[0]
    return of, level
