"""The readers, by name: those of this library, of third parties, and those that a program registers.

A distribution brings a reader by an entry point of the group `tensordb_data.sources`, whose name is that of the format
and whose value is an opener:

    [project.entry-points."tensordb_data.sources"]
    lance = "my_package.lance:open_lance"

It is loaded only when its name is asked for, or when no reader of this library takes the source. None of them takes the
place of a reader of this library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tensordb_data.common.options import nearest
from tensordb_data.errors import MissingExtraError, QueryError, SchemaError
from tensordb_data.ingest.compressed import with_compressed

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given
    from tensordb_data.ingest.source import Source

Opener = Callable[["Given"], "Source"]
GROUP = "tensordb_data.sources"


@dataclass(frozen=True)
class Reader:
    """A reader of one format."""

    opener: str | Opener
    """The opener, or where it is: `"package.module:function"`."""
    suffixes: tuple[str, ...] = ()
    """How names of its files end, in lower case."""
    marks: tuple[str, ...] = ()
    """Names of files that tell a folder of this format."""
    sniff: Callable[[bytes], bool] | None = None
    """Whether the first bytes of a file are of this format."""

    def open(self, given: Given) -> Source:
        """Make the source."""
        opener = self.opener
        if isinstance(opener, str):
            module, _, name = opener.partition(":")
            opener = cast(Opener, getattr(importlib.import_module(module), name))
        return opener(given)


def _is_record(head: bytes) -> bool:
    from tensordb_data.common.wire.tfrecord import is_record

    return is_record(head)


def _is_sound(head: bytes) -> bool:
    from tensordb_data.schema.media.sound import sound_format

    return sound_format(head) is not None and head[:1] != b"\xff"  # as an MP3 without tags begins, and much else


def _is_video(head: bytes) -> bool:
    from tensordb_data.schema.media.containers import video_format

    return video_format(head) is not None


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _is_nifti(head: bytes) -> bool:
    from tensordb_data.schema.media.nifti import is_nifti

    return is_nifti(head)


AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf")
VIDEO = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".ogv")
DICOM = (".dcm", ".dicom", ".ima")
NIFTI = (".nii", ".nii.gz")
MEDIA = ("images", "audio", "video", "dicom", "nifti")
"""Formats of which a table beside the files is about them."""
_OURS = "tensordb_data.ingest.readers."
BUILT_IN: dict[str, Reader] = {
    "huggingface": Reader(_OURS + "arrow:open_saved", (), ("dataset_dict.json", "state.json")),
    "images": Reader(_OURS + "image_folder:open_images"),
    "audio": Reader(_OURS + "media.audio:open_audio", AUDIO, (), _is_sound),
    "video": Reader(_OURS + "media.video:open_video", VIDEO, (), _is_video),
    "dicom": Reader(_OURS + "media.dicom:open_dicom", DICOM, (), _is_dicom),
    "nifti": Reader(_OURS + "media.nifti:open_nifti", NIFTI, (), _is_nifti),
    "csv": Reader(_OURS + "csv:open_csv", with_compressed((".csv", ".tsv"))),
    "jsonl": Reader(_OURS + "jsonl:open_jsonl", with_compressed((".jsonl", ".ndjson", ".json"))),
    "npz": Reader(_OURS + "npz:open_npz", (".npz", ".npy"), (), lambda head: head[:6] == b"\x93NUMPY"),
    "parquet": Reader(_OURS + "parquet:open_parquet", (".parquet", ".pq"), (), lambda head: head[:4] == b"PAR1"),
    "arrow": Reader(
        _OURS + "arrow:open_arrow", (".arrow", ".feather", ".ipc", ".arrows"), (), lambda head: head[:6] == b"ARROW1"
    ),
    "webdataset": Reader(_OURS + "shards.webdataset:open_webdataset", (".tar", ".tar.gz", ".tgz")),
    "mds": Reader(_OURS + "shards.mds_files:open_mds", (".mds", ".mds.zstd", ".mds.gz", ".mds.bz2")),
    "tfrecord": Reader(
        _OURS + "shards.tfrecord_files:open_tfrecord", (".tfrecord", ".tfrecords", ".tfrec"), (), _is_record
    ),
    "coco": Reader(_OURS + "boxes.coco_files:open_coco"),
    "voc": Reader(_OURS + "boxes.voc_files:open_voc"),
    "yolo": Reader(_OURS + "boxes.yolo_files:open_yolo", marks=("data.yaml",)),
}
"""The readers of this library. The first that fits is taken."""
_registered: dict[str, Reader] = {}


def register(
    name: str,
    opener: Opener,
    *,
    suffixes: Sequence[str] = (),
    sniff: Callable[[bytes], bool] | None = None,
) -> None:
    """Add a reader to this process.

    Args:
        name: The name of the format, for `format=`.
        opener: Makes a source; see `tensordb_data.ingest.source`.
        suffixes: How names of its files end, such as `".lance"`.
        sniff: Tells whether the first bytes of a file, 64 or more, are of this format.

    Raises:
        QueryError: The name is that of a reader of this library, or an argument is not what it should be.
    """
    if not isinstance(name, str) or not name or name in BUILT_IN:
        raise QueryError(f"expected a name that no reader of this library has, found {name!r}")
    if not callable(opener):
        raise QueryError(f"expected an opener, a function of a Given, found {opener!r}")
    ends = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
    if not all(isinstance(end, str) and end.startswith(".") for end in ends):
        raise QueryError(f'expected suffixes such as ".lance", found {suffixes!r}')
    _registered[name] = Reader(opener, tuple(end.lower() for end in ends), (), sniff)


def reader_named(name: str) -> Reader:
    """The reader of a format.

    Raises:
        SchemaError: There is none.
        MissingExtraError: Its distribution cannot be imported.
    """
    found = BUILT_IN.get(name) or _registered.get(name)
    if found is not None:
        return found
    for entry in _entry_points():
        if entry.name == name:
            return Reader(_loaded(entry))
    known = [*BUILT_IN, *_registered, *(entry.name for entry in _entry_points())]
    raise SchemaError(f"format: there is no reader {name!r}{nearest(name, known)}")


def others() -> Iterator[tuple[str, Reader]]:
    """The readers that are not of this library: those of this process, then those of distributions."""
    yield from _registered.items()
    for entry in _entry_points():
        if entry.name not in BUILT_IN and entry.name not in _registered:
            yield entry.name, Reader(_loaded(entry))


def _entry_points() -> list[Any]:
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)


def _loaded(entry: Any) -> Opener:
    try:
        return cast(Opener, entry.load())
    except Exception as error:
        name = getattr(entry.dist, "name", None) or entry.value
        raise MissingExtraError(
            f"the reader {entry.name!r} of the package {name} cannot be loaded: {type(error).__name__}: {error}"
        ) from None
