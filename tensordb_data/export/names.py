"""Names of files out of values that anybody may have written.

A name stays below the folder of the export, on every system: without `..`, control characters, what Windows refuses,
and leading dots, which hide a file. No two names are equal but for case, or for how Unicode writes an accent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from tensordb_data.schema.media.containers import video_format
from tensordb_data.schema.media.dicom import is_dicom
from tensordb_data.schema.media.nifti import is_nifti
from tensordb_data.schema.media.sound import sound_format

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\/\u202a-\u202e\u2066-\u2069]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_LONGEST = 200
"""Bytes of a part of a path. File systems take 255; numbers are added to a name that exists already."""
_PARTS = 16

_SUFFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"),
    (b"MM\0*", "tif"), (b"\0\0\0\x0cjP  ", "jp2"), (b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mp3"),
    (b"P4", "pbm"), (b"P5", "pgm"), (b"P6", "ppm"), (b"\xff\xfb", "mp3"), (b"\xff\xf3", "mp3"),
    (b"\x1aE\xdf\xa3", "mkv"),
)  # fmt: skip
_SAME = {"jpeg": "jpg", "jpe": "jpg", "tiff": "tif", "webm": "mkv", "m4v": "mp4", "mov": "mp4", "oga": "ogg",
         "opus": "ogg", "ogv": "ogg", "aif": "aiff", "aifc": "aiff", "mpeg": "mpg", "mts": "ts", "m2ts": "ts",
         "dicom": "dcm", "ima": "dcm"}  # fmt: skip
_VIDEO = {"mov": "mp4", "matroska": "mkv", "mpeg": "mpg", "mpegts": "ts"}
_KNOWN = {*_SAME, *(suffix for _, suffix in _SUFFIXES), "webp", "wav", "avif", "heic", "mp4", "avi", "flv", "mpg", "ts",
          "aiff", "au", "caf", "dcm", "nii", "bin"}  # fmt: skip


def safe_part(text: str, instead: str = "_") -> str:
    """A text as one part of a path.

    Args:
        text: Any text.
        instead: What to use where nothing is left of it.
    """
    text = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).rstrip(". ").lstrip(" ")
    if text.startswith("."):
        text = f"_{text[1:]}"
    if _RESERVED.fullmatch(text):
        text = f"_{text}"
    return _shortened(text) or instead


def _shortened(text: str) -> str:
    if len(text.encode()) <= _LONGEST:
        return text
    stem, dot, suffix = text.rpartition(".")
    if not dot or len(suffix.encode()) > 16:
        stem, suffix = text, ""
    end = f"{dot}{suffix}" if suffix else ""
    return stem.encode()[: _LONGEST - len(end.encode())].decode(errors="ignore").rstrip(". ") + end


def safe_path(text: str) -> str | None:
    """A text as a path below a folder; None if nothing is left of it."""
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")]
    return "/".join(map(safe_part, parts[-_PARTS:])) or None


def with_suffix(path: str, suffix: str) -> str:
    """A path whose suffix says what is in the file. One that says so already stays as it is."""
    found = PurePosixPath(path).suffix[1:].lower()
    if path.lower().endswith(f".{suffix}"):
        return path
    if found and _SAME.get(found, found) == suffix:
        return path
    return f"{path[: -len(found) - 1]}.{suffix}" if found in _KNOWN else f"{path}.{suffix}"


def suffix_of(data: Any) -> str:
    """The suffix of a file with these bytes, `bin` if they tell nothing."""
    head = bytes(memoryview(data)[:16])
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}.get(head[8:12], "bin")
    if head[4:8] == b"ftyp":
        return {b"avif": "avif", b"heic": "heic"}.get(head[8:12], "mp4")
    return next((suffix for magic, suffix in _SUFFIXES if head.startswith(magic)), None) or _suffix_of_media(data)


def _suffix_of_media(data: Any) -> str:
    sound = None if bytes(data[:1]) == b"\xff" else sound_format(data)  # which many bytes begin with
    video = video_format(data)
    if sound is not None or video is not None:
        return sound or _VIDEO.get(video or "", video or "")
    if is_dicom(data):
        return "dcm"
    if is_nifti(data):
        return "nii.gz" if bytes(data[:2]) == b"\x1f\x8b" else "nii"
    return "bin"


class Names:
    """Paths that were given away: each is different from all others, also where case does not count.

    Args:
        taken: Paths that others have.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        for path in taken:
            self._take(path)

    def unique(self, path: str) -> str:
        """The path; or a similar one, if there is one of that name."""
        if any(folder in self._files for folder in _folders(_folded(path))):  # what were its folder is a file
            path = path.replace("/", "_")
        found, number = path, 1
        place = PurePosixPath(path)
        while _folded(found) in self._files or _folded(found) in self._folders:
            number += 1
            found = str(place.with_name(f"{place.stem}~{number}{place.suffix}"))
        self._take(found)
        return found

    def _take(self, path: str) -> None:
        folded = _folded(path)
        self._files.add(folded)
        self._folders.update(_folders(folded))


def _folders(path: str) -> Iterator[str]:
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
