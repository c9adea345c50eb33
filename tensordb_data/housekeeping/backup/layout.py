"""The files of a backup, and how each of them is checked before it is used.

    manifest.json              what the backup is of, and the size and checksum of files.txt; written last
    files.txt                  a line for each other file: sha256, two blanks, bytes, two blanks, path
    index/NAME.bson.zst        the documents of a collection, one after the other as BSON, compressed with zstd
    blobs/segments/ID …        the objects of the stores, by their keys

Whoever reads a backup may have got it from somebody else. So no path of it is used that is not of one of these forms,
no link is followed, and a size is compared with that of the file before anything of it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensordb_data.blobs.keys import is_key
from tensordb_data.common.system.files import FOLDER, OWN, OWN_NO_WAIT, PLAIN, sync_folder
from tensordb_data.common.system.private import file_mode, make_folder
from tensordb_data.errors import CorruptBlobError, StorageError, UnsupportedError

FORMAT = 1
MANIFEST, FILES = "manifest.json", "files.txt"
COLLECTIONS = (
    "data", "datasets", "segments", "tensors", "params", "architectures", "logs", "jobs", "search", "tombstones",
    "deployments", "runs", "sources", "feedback", "changes", "frozen", "frozen_segments", "forgotten",
)  # fmt: skip
"""The collections that a backup holds. What the others hold is of no use to another server: leases, passes, workers."""

PIECE = 4 << 20
"""Bytes that are read at once."""
_MOST_MANIFEST = 16 << 20
_LINE = 1024
_FILE = re.compile(r"([0-9a-f]{64})  (0|[1-9][0-9]{0,17})  (\S+)\n", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One file of a backup."""

    path: str
    nbytes: int
    sha256: str

    @property
    def key(self) -> str | None:
        """The key of an object; None for a collection."""
        return self.path.removeprefix("blobs/") if self.path.startswith("blobs/") else None


@dataclass
class Manifest:
    """What `manifest.json` says."""

    format: int
    """The format of the backup."""
    made: str
    """When, in UTC."""
    warehouse: int
    """The format of the warehouse."""
    root: int
    """The id that the place of the blobs gets when they are restored."""
    roots: list[int]
    """The ids of the places whose blobs are in the backup."""
    others: list[dict[str, Any]]
    """The places whose blobs are not in it, `{id, url}` each."""
    documents: dict[str, list[int]]
    """For each collection how many documents, and how many bytes they are before they are compressed."""
    objects: int
    bytes: int
    """Bytes of all files but the manifest."""
    files: dict[str, Any]
    """`bytes` and `sha256` of files.txt."""
    left_out: list[str] = field(default_factory=list)
    """A line for each thing that is not in the backup."""
    damaged: list[str] = field(default_factory=list)
    """A line for each object that was missing or damaged when the backup was made."""


class Output:
    """A new file of a backup, for this user alone: it counts its bytes and their checksum while it is written."""

    def __init__(self, folder: Path, path: str) -> None:
        place = folder / path
        make_folder(place.parent)
        self.path, self.nbytes, self._hash = path, 0, hashlib.sha256()
        self._fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, file_mode())

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes; returns how many."""
        self._hash.update(data)
        view = memoryview(data).cast("B")
        self.nbytes += view.nbytes
        while view:
            view = view[os.write(self._fd, view) :]
        return memoryview(data).nbytes

    def entry(self) -> Entry:
        """What was written so far."""
        return Entry(self.path, self.nbytes, self._hash.hexdigest())

    def close(self) -> None:
        """Make the bytes durable."""
        os.fsync(self._fd)
        os.close(self._fd)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line(entry: Entry) -> bytes:
    """The line of a file in files.txt."""
    return f"{entry.sha256}  {entry.nbytes}  {entry.path}\n".encode()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in one step. From then on this is a backup."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    with Output(folder, f"{MANIFEST}.new") as file:
        file.write(text.encode())
    for place in {path.parent for path in folder.rglob("*")}:
        sync_folder(place)
    os.replace(folder / f"{MANIFEST}.new", folder / MANIFEST)
    sync_folder(folder)
    sync_folder(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup, of which each value is of its type.

    Raises:
        StorageError: This is no backup, it is not complete, or of a newer format.
        CorruptBlobError: The manifest is damaged.
    """
    if not (folder / MANIFEST).exists():
        raise StorageError(f"{folder} holds no complete backup: expected a {MANIFEST} there, which is written last")
    fd, nbytes = _open(folder, MANIFEST)
    with open(fd, "rb") as file:
        if nbytes > _MOST_MANIFEST:
            raise CorruptBlobError(f"{folder / MANIFEST} has {nbytes:,} bytes, expected {_MOST_MANIFEST:,} at most")
        text = file.read(nbytes)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptBlobError(f"{folder / MANIFEST} is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else found
        raise StorageError(f"{folder} is a backup of format {said!r:.50}, and this version reads format {FORMAT}: "
                           "upgrade tensordb-data")  # fmt: skip
    if not _is_sound(found):
        raise CorruptBlobError(
            f"{folder / MANIFEST} is damaged: expected the fields of a manifest, found {text!r:.200}"
        )
    return Manifest(**{each.name: found[each.name] for each in dataclasses.fields(Manifest)})


def _is_sound(found: Mapping[str, Any]) -> bool:
    numbers = [found.get(name) for name in ("warehouse", "root", "objects", "bytes")]
    documents, files, others = found.get("documents"), found.get("files"), found.get("others")
    roots = found.get("roots")
    return (
        all(_is_count(number) for number in numbers)
        and isinstance(found.get("made"), str)
        and all(_is_list(found.get(name), str) for name in ("left_out", "damaged"))
        and isinstance(roots, list) and all(map(_is_count, roots))
        and isinstance(others, list)
        and all(isinstance(other, dict) and set(other) == {"id", "url"} and _is_count(other["id"])
                and isinstance(other["url"], str) for other in others)
        and isinstance(documents, dict) and set(documents) <= set(COLLECTIONS)
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair)) for pair in documents.values())
        and isinstance(files, dict) and _is_count(files.get("bytes")) and isinstance(files.get("sha256"), str)
    )  # fmt: skip


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def read_files(folder: Path, manifest: Manifest) -> Iterator[Entry]:
    """The files of a backup, as files.txt names them. Each file is there, and has its size.

    Raises:
        CorruptBlobError: files.txt is not the one of the manifest, or names what is not of a form of ours.
    """
    found = hashlib.sha256()
    for number, text in enumerate(_lines(folder, manifest), 1):
        found.update(text)
        fields = _FILE.fullmatch(text.decode("ascii", "replace"))
        if fields is None or not _is_ours(fields[3]):
            raise CorruptBlobError(f"{folder / FILES} line {number}: expected a file of a backup, found {text!r:.200}")
        entry = Entry(fields[3], int(fields[2]), fields[1])
        os.close(open_entry(folder, entry))
        yield entry
    if found.hexdigest() != manifest.files["sha256"]:
        raise CorruptBlobError(f"{folder / FILES} does not match the checksum that {MANIFEST} has of it")


def _lines(folder: Path, manifest: Manifest) -> Iterator[bytes]:
    fd = open_entry(folder, Entry(FILES, manifest.files["bytes"], manifest.files["sha256"]))
    with open(fd, "rb") as file:
        while text := file.readline(_LINE):
            yield text


def _is_ours(path: str) -> bool:
    folder, _, name = path.partition("/")
    return is_key(name) if folder == "blobs" else path in {f"index/{each}.bson.zst" for each in COLLECTIONS}


def pieces(folder: Path, entry: Entry) -> Iterator[bytes]:
    """The bytes of a file in pieces. After the last, the checksum was compared.

    Raises:
        CorruptBlobError: The file has another size or other bytes than its entry says.
    """
    with open(open_entry(folder, entry), "rb", 0) as file:
        found, left = hashlib.sha256(), entry.nbytes
        while left and (piece := file.read(min(left, PIECE))):
            found.update(piece)
            left -= len(piece)
            yield piece
    if left or found.hexdigest() != entry.sha256:
        raise CorruptBlobError(f"{folder / entry.path} does not match the checksum that the backup has of it: fetch "
                               "the backup again, or use another one")  # fmt: skip


def open_entry(folder: Path, entry: Entry) -> int:
    """Open a file of a backup, if it has its size; returns the descriptor."""
    fd, nbytes = _open(folder, entry.path)
    if nbytes == entry.nbytes:
        return fd
    os.close(fd)
    raise CorruptBlobError(f"{folder / entry.path} has {nbytes:,} bytes, expected {entry.nbytes:,}: the backup was "
                           "copied incompletely, or changed")  # fmt: skip


def _open(folder: Path, path: str) -> tuple[int, int]:
    """Open a plain file below a folder, through no link; returns its descriptor and size."""
    *parents, name = path.split("/")
    at = -1
    if os.open not in os.supports_dir_fd:
        raise UnsupportedError(f"{folder}: backups are read on Linux and macOS only, and this is {sys.platform}")
    try:
        at = os.open(folder, os.O_RDONLY | FOLDER)
        for parent in parents:
            inner = os.open(parent, os.O_RDONLY | FOLDER | OWN, dir_fd=at)
            os.close(at)
            at = inner
        fd = os.open(name, os.O_RDONLY | OWN_NO_WAIT, dir_fd=at)
    except OSError as error:
        raise StorageError(f"cannot read {folder / path} of the backup: {error.strerror or error}") from None
    finally:
        if at >= 0:
            os.close(at)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode):
        return fd, found.st_size
    os.close(fd)
    raise StorageError(f"cannot read {folder / path} of the backup: expected a plain file")
