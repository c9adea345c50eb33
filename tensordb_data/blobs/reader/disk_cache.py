"""Disk cache: segments of remote stores as sparse files, filled blob by blob, shared by all processes of a host.

    head | a mark for each blob: 1 when it is there | the segment, as far as it is there

A file of another user, or one that others may write to, is not used. Nothing else here is trusted either. A mark is set
after the bytes are written, and each process still compares every blob with its checksum before the first use, so a
kill, a power cut or a damaged disk costs a download and never a sample. A file is used through a mapping: it may be
removed at any time, and whoever has it mapped goes on.

What keeps two processes from fetching the same bytes are locks on a descriptor of their own (the range of blob numbers
that one fetches), which end with it. They save work; nothing relies on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tensordb_data.blobs.reader.cached_file import HEAD, PAGE, CachedFile, Claim, begins, head_of, is_ours, write_all
from tensordb_data.common.system.files import OWN, PLAIN, occupied, read_at
from tensordb_data.common.system.mmap import map_open_file
from tensordb_data.common.system.private import ForeignFileError, file_mode, make_folder, open_own
from tensordb_data.errors import CacheWarning

log = logging.getLogger("tensordb_data.blobs")

DEFAULT_CAP = 50 * 10**9
DEFAULT_SHARE = 10
"""The default cap is the smaller of `DEFAULT_CAP` and one part in this many of the disk's free space."""

_NAME = re.compile(r"[0-9a-f]{32}\.seg")
_TEMPORARY = re.compile(r"new-[0-9a-f]{32}-[0-9a-f]{12}\.tmp")
_ABANDONED = 3600.0  # seconds after which a temporary file belongs to nobody
_PAUSE = 30.0  # seconds without a write to a disk that refused one
_GRANT = 64 << 20  # bytes that a process writes at most before it looks again how full the cache is


class SegmentCache:
    """The cached segments in one folder, of at most `cap` bytes: the least recently used go first.

    Nothing here is needed: without room or rights a blob is read from its store each time, and the log says so once.

    Args:
        folder: Made when it is first needed. Other files in it are left alone.
        cap: Bytes on disk. None: a tenth of the disk's free space, at most 50 GB.
    """

    def __init__(self, folder: Path, cap: int | None = None) -> None:
        self.folder = folder
        self.dropped: Callable[[set[str]], None] = lambda names: None
        """Called with the names of files that were removed or replaced."""
        self._cap = cap
        self._lock = threading.Lock()
        self._room = 0
        self._pending = 0  # bytes that were admitted and may not be on disk yet
        self._paused = 0.0
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"SegmentCache({str(self.folder)!r}, cap={self._cap})"

    @property
    def cap(self) -> int:
        """Bytes on disk that the cache may take."""
        if self._cap is None:
            known = self.folder
            while not known.is_dir() and known != known.parent:
                known = known.parent
            try:
                free = shutil.disk_usage(known).free + sum(size for _, size, _ in self._files())
            except OSError:
                return DEFAULT_CAP  # why it cannot be used, the attempt to write will say
            self._cap = min(DEFAULT_CAP, free // DEFAULT_SHARE)
        return self._cap

    @staticmethod
    def name(*identity: object) -> str:
        """The file name of a segment, a hash of the values that identify it."""
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:32] + ".seg"

    def open(self, name: str, nbytes: int, blobs: int) -> CachedFile | None:
        """The file of a segment, if it is there."""
        path = self.folder / name
        try:
            fd = open_own(path)
            try:
                found = os.fstat(fd)
                begin = begins(blobs)
                if found.st_size != begin + nbytes:
                    raise ValueError(f"expected a file of {begin + nbytes} bytes, found {found.st_size}")
                head, expected = read_at(fd, HEAD.size, 0), head_of(nbytes, blobs)
                if head != expected:
                    raise ValueError(f"expected one that begins with {expected!r}, found {head!r}")
                memory = map_open_file(fd, begin + nbytes, path)
            finally:
                os.close(fd)
            with contextlib.suppress(OSError):
                os.utime(path)  # used now
            return CachedFile(path, memory, (found.st_dev, found.st_ino), begin, blobs)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ForeignFileError as error:
            if "foreign" not in self._warned:
                self._warned.add("foreign")
                warnings.warn(f"{error}; what is in it is read from its store", CacheWarning, stacklevel=2)
            return None
        except (OSError, ValueError) as error:
            self._warn("damaged", f"the cached file {path} cannot be used: {error}")
            self.discard(name)
            return None

    def create(self, name: str, nbytes: int, blobs: int, parts: Sequence[tuple[int, memoryview]]) -> CachedFile | None:
        """A new file for a segment, with some of its bytes in place already.

        Returns:
            The file, or another process's if that was first; None where it cannot be kept.
        """
        begin = begins(blobs)
        if begin + nbytes > self.cap:
            self._warn(
                "cap", f"a segment of {nbytes:,} bytes is more than cache_bytes={self.cap:,} allows: it is not cached"
            )
            return None
        if self._resting():
            return None
        with self.admitted(begin + sum(len(part) for _, part in parts), name) as fits:
            if not fits or not self._make(name, nbytes, blobs, parts):
                return None
        return self.open(name, nbytes, blobs)

    def _make(self, name: str, nbytes: int, blobs: int, parts: Sequence[tuple[int, memoryview]]) -> bool:
        begin, path = begins(blobs), self.folder / name
        temporary = self.folder / f"new-{name[:32]}-{secrets.token_hex(6)}.tmp"
        try:
            make_folder(self.folder)
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | PLAIN, file_mode() & ~0o022)
            try:
                write_all(fd, 0, memoryview(head_of(nbytes, blobs)))
                os.ftruncate(fd, begin + nbytes)
                for offset, part in parts:
                    write_all(fd, begin + offset, part)
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    pass
                except OSError:  # not every file system has links
                    os.rename(temporary, path)
            finally:
                os.close(fd)
                with contextlib.suppress(OSError):
                    temporary.unlink()
        except OSError as error:
            self.pause(error)
            return False
        return True

    def claim(self, file: CachedFile) -> Claim | None:
        """Open a file for writing; returns None if it cannot be written, or was removed meanwhile."""
        if self._resting():
            return None
        try:
            fd = os.open(file.path, os.O_RDWR | OWN)
        except FileNotFoundError:
            self.dropped({file.path.name})
            return None
        except OSError as error:
            self.pause(error)
            return None
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != file.identity:
            os.close(fd)
            self.dropped({file.path.name})
            return None
        return Claim(file, fd)

    @contextlib.contextmanager
    def admitted(self, nbytes: int, name: str) -> Iterator[bool]:
        """Whether so many bytes may now be written to the file of that name, once older files have made room."""
        nbytes += 2 * PAGE  # what they take in whole blocks
        evicted: set[str] = set()
        with self._lock:
            self._room -= nbytes
            fits = self._room >= 0
            if not fits:
                try:
                    fits, evicted = self._make_room(nbytes, name)
                except OSError as error:
                    self.pause(error)
            self._pending += nbytes if fits else 0
        if evicted:
            self.dropped(evicted)
        try:
            yield fits
        finally:
            with self._lock:
                self._pending -= nbytes if fits else 0

    def touch(self, files: Iterable[CachedFile]) -> None:
        """Note that files were used now, and drop those that were removed."""
        gone = set()
        for file in files:
            if not file.is_current():
                gone.add(file.path.name)
                continue
            with contextlib.suppress(OSError):
                os.utime(file.path)
        if gone:
            self.dropped(gone)

    def discard(self, name: str) -> None:
        """Remove one file, if it is one of ours."""
        with contextlib.suppress(OSError):
            if _NAME.fullmatch(name) and is_ours(self.folder / name):
                (self.folder / name).unlink()

    def pause(self, error: OSError) -> None:
        """Write nothing for a while, since the disk refused it."""
        self._paused = time.monotonic() + _PAUSE
        self._warn(
            f"write {error.errno}",
            f"cannot cache in {self.folder}: {error.strerror or error}; blobs are read from their store each time",
        )

    def _resting(self) -> bool:
        return time.monotonic() < self._paused

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            log.warning("%s", text)

    def _files(self) -> list[tuple[int, int, str]]:
        """Time of last use, bytes on disk and name of every file of the cache; abandoned ones are removed."""
        found = []
        try:
            entries = list(os.scandir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        for entry in entries:
            ours, temporary = _NAME.fullmatch(entry.name), _TEMPORARY.fullmatch(entry.name)
            if not (ours or temporary):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if ours:
                    found.append((status.st_mtime_ns, occupied(status), entry.name))
                elif time.time() - status.st_mtime > _ABANDONED and is_ours(Path(entry.path)):
                    os.unlink(entry.path)
        return found

    def _make_room(self, nbytes: int, keep: str) -> tuple[bool, set[str]]:
        files = sorted(self._files())
        used = self._pending + sum(size for _, size, _ in files)
        grant = min(_GRANT, self.cap // 16)
        evicted = set()
        for _, size, name in files:
            if used + nbytes + grant <= self.cap:
                break
            if name == keep or not is_ours(self.folder / name):
                continue
            try:
                (self.folder / name).unlink()
            except FileNotFoundError:
                pass
            except OSError:
                continue  # another user's
            evicted.add(name)
            used -= size
        self._room = min(self.cap - used - nbytes, grant)
        return self._room >= 0, evicted
