"""Tar files of WebDataset: members of one name with different suffixes are one sample.

The key of a member is all before the first dot of its base name, with the folder before it; the rest is its suffix, in
lower case. `x.seg.png`, `x.JPG` and `./x.json` are the sample `x` with `seg.png`, `jpg` and `json`.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from tensordb_data.errors import CorruptBlobError

_MOST_CLAIMED = 1 << 30
"""Bytes of a member that is sparse, or in a packed file: it may claim far more than the file has."""
_GZIP = b"\x1f\x8b"
_LINKS = 8

Note = Callable[[str, str], None]
"""Gets the name of a member, and what there is to say of it."""


@dataclass(frozen=True)
class Member:
    """The bytes of one file in a tar file."""

    name: str
    offset: int
    size: int
    sparse: tarfile.TarInfo | None = None
    """A sparse file, whose bytes do not lie together."""


@dataclass
class TarSample:
    """The members of one key, by suffix."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


class TarIndex:
    """What is in a tar file.

    Args:
        file: The file, open to be read at any place; also one that gzip has compressed.
        size: Its bytes.
        note: Gets members that are left out or come twice.

    Raises:
        CorruptBlobError: It is no tar file, or is cut off.
    """

    def __init__(self, file: BinaryIO, size: int, note: Note) -> None:
        self._file, self._limit = opened(file, size)
        self.ignored: list[str] = []
        """Members that operating systems have added."""
        samples: dict[str, TarSample] = {}
        for member in self._members(note):
            key, suffix = split_name(member.name)
            if not suffix:
                note(member.name, "has no suffix, which would name its field")
                continue
            found = samples.setdefault(key, TarSample(key))
            if suffix in found.members:
                note(member.name, "is there twice: the last one is taken")
            found.members[suffix] = member
        self.samples: Sequence[TarSample] = list(samples.values())

    @property
    def is_packed(self) -> bool:
        """Whether gzip has compressed the file, so that its members are nowhere as they are."""
        return self._limit is None

    def read(self, member: Member) -> bytes:
        """The bytes of a member.

        Raises:
            CorruptBlobError: The file is shorter than it was.
        """
        if member.sparse is not None:
            with self._tar() as tar:
                found = tar.extractfile(member.sparse)
                return b"" if found is None else found.read()
        self._file.seek(member.offset)
        data = self._file.read(member.size)
        if len(data) != member.size:
            raise CorruptBlobError(f"{member.name}: expected {member.size:,} bytes, found {len(data):,}")
        return data

    def head(self, member: Member, nbytes: int) -> bytes:
        """The first bytes of a member, at most so many; none of a sparse one."""
        if member.sparse is not None:
            return b""
        self._file.seek(member.offset)
        return self._file.read(min(nbytes, member.size))

    def _tar(self) -> tarfile.TarFile:
        self._file.seek(0)
        return tarfile.open(fileobj=self._file, mode="r:")

    def _members(self, note: Note) -> Iterator[Member]:
        found: dict[str, Member] = {}
        links: list[tarfile.TarInfo] = []
        try:
            with self._tar() as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # they are kept here, in less memory
                    name = info.name.removeprefix("./")
                    if is_litter(name):
                        self.ignored.append(name)
                    elif info.islnk() or info.issym():
                        links.append(info)
                    elif info.isreg():
                        member = self._member(info, name, note)
                        if member is not None:
                            found[name] = member
                            yield member
                    elif not info.isdir():
                        note(name, "is no plain file")
                self._check_end(tar.offset)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            if isinstance(error, CorruptBlobError):
                raise
            raise CorruptBlobError(f"expected a tar file, found a damaged one: {error}") from None
        for info in links:
            yield from _linked(info, found, {link.name.removeprefix("./"): link for link in links}, note)

    def _check_end(self, at: int) -> None:
        """Refuse a file that goes on with something else than members, as the library would end there in silence."""
        self._file.seek(at)
        if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise CorruptBlobError(f"expected a member at byte {at:,}, found a damaged header")

    def _member(self, info: tarfile.TarInfo, name: str, note: Note) -> Member | None:
        if (info.issparse() or self._limit is None) and info.size > _MOST_CLAIMED:
            note(name, f"claims {info.size:,} bytes, and {_MOST_CLAIMED:,} at most are read of a sparse or packed file")
            return None
        if info.issparse():
            return Member(name, info.offset_data, info.size, info)
        if self._limit is not None and info.offset_data + info.size > self._limit:
            raise CorruptBlobError(f"{name}: expected {info.size:,} bytes, found a tar file that is cut off")
        return Member(name, info.offset_data, info.size)


def _linked(
    info: tarfile.TarInfo, found: dict[str, Member], links: dict[str, tarfile.TarInfo], note: Note
) -> Iterator[Member]:
    """The member that a link is another name of."""
    name, at = info.name.removeprefix("./"), info
    for _ in range(_LINKS):
        target = at.linkname
        if at.issym():
            target = _joined(at.name, target)
        target = target.removeprefix("./")
        if (member := found.get(target)) is not None:
            yield Member(name, member.offset, member.size, member.sparse)
            return
        if target not in links:
            break
        at = links[target]
    note(name, f"is a link to {info.linkname!r:.80}, which is not in the file")


def _joined(name: str, target: str) -> str:
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def opened(file: BinaryIO, size: int) -> tuple[BinaryIO, int | None]:
    """The file with its compression removed, and its bytes if they are known."""
    file.seek(0)
    head = file.read(2)
    file.seek(0)
    if head == _GZIP:
        return cast(BinaryIO, gzip.GzipFile(fileobj=file)), None
    return file, size


def split_name(name: str) -> tuple[str, str]:
    """The key of a member, and its suffix in lower case; an empty one if it has none."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def is_litter(name: str) -> bool:
    """Whether an operating system has added a file: `._x`, `__MACOSX/…`, `.DS_Store`."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith(".")
