"""Where files are: paths, folders, globs, lists, braces and URLs become a list of files."""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from tensordb_data.errors import SchemaError, StorageError
from tensordb_data.ingest.source import FileInfo

if TYPE_CHECKING:
    from tensordb_data.blobs.stores.remote_files import RemoteFiles

_SCHEMES = ("s3", "gs", "az", "http", "https")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000
"""Names that braces stand for, at most."""
_OF_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN")


class Files:
    """The files of a source.

    Attributes:
        id: What tells the source from others.
        root: The folder or URL below which the names of the files are.
        files: The files, by name.
    """

    def __init__(self, id: str, root: str, files: Sequence[FileInfo]) -> None:
        self.id, self.root, self.files = id, root.rstrip("/") or "/", list(files)

    @property
    def folder(self) -> Path | None:
        """The root, if it is a local folder."""
        return None if is_url(self.root) else Path(self.root)

    def path(self, file: FileInfo) -> str:
        """The path or URL of a file."""
        return f"{self.root.rstrip('/')}/{file.name}" if file.name else self.root

    def open(self, file: FileInfo) -> BinaryIO:
        """Open a file to be read, at any place in it.

        Raises:
            StorageError: It cannot be read.
        """
        folder = self.folder
        if folder is None:
            return _remote_files(self.root).open(file.name)
        try:
            return open(folder / file.name, "rb")
        except OSError as error:
            raise StorageError(f"{folder / file.name}: {error.strerror or error}") from None

    def read(self, file: FileInfo) -> bytes:
        """All bytes of a file.

        Raises:
            StorageError: It cannot be read.
        """
        with self.open(file) as opened:
            try:
                return opened.read()
            except OSError as error:
                raise StorageError(f"{self.path(file)}: {error.strerror or error}") from None


Unreadable = Callable[[str, str], None]


def is_url(text: str) -> bool:
    """Whether a text is the URL of a file or folder that is not on this machine."""
    return text.partition("://")[0] in _SCHEMES and "://" in text


def find_files(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], unreadable: Unreadable) -> Files:
    """The files at a path, in a folder, of a glob, of a list of these, or at a URL.

    Hidden files and those of operating systems are left out. Links are followed; those into a folder above end there.

    Args:
        source: Where they are.
        unreadable: Called with name and reason for each that cannot be looked at.

    Raises:
        SchemaError: There is nothing.
        StorageError: A URL cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        if "\0" in text or not text:
            raise SchemaError(f"expected the path of a file or folder, found {text!r}")
        if is_url(text):
            return _remote(text)
        path = os.path.abspath(os.path.expanduser(text))
        if os.path.exists(path):
            return _local(path, unreadable)
        return _listed(_named(text), path, unreadable, text)
    texts = [os.fsdecode(one) for one in source]
    if not texts:
        raise SchemaError("expected files, found an empty list")
    urls = [text for text in texts if is_url(text)]
    if urls:
        if len(urls) < len(texts):
            other = next(text for text in texts if not is_url(text))
            raise SchemaError(f"expected paths or URLs, found both: {urls[0]} and {other}")
        return _remotes(texts)
    found = list(itertools.chain.from_iterable(_named(text) or [text] for text in texts))
    ids = [os.path.abspath(os.path.expanduser(text)) for text in texts]
    return _listed(found, ids[0] if len(ids) == 1 else "\n".join(sorted(ids)), unreadable, ", ".join(texts[:3]))


def _named(text: str) -> list[str]:
    """The paths that braces and wildcards stand for."""
    out: list[str] = []
    for each in _expanded(os.path.expanduser(text)):
        if os.path.exists(each):
            out.append(each)
        elif glob.has_magic(each):
            out += sorted(glob.glob(each, recursive=True))
        elif each != text:
            raise SchemaError(f"nothing at {each}, which {text} stands for")
    return list(dict.fromkeys(out))


def _expanded(text: str) -> list[str]:
    """What braces stand for: `{000..099}` is a range, `{a,b}` a choice."""
    out = [text]
    while (match := _BRACES.search(out[0])) is not None:
        inner = match[1]
        numbers = _RANGE.fullmatch(inner)
        if numbers is not None:
            low, high = int(numbers[1]), int(numbers[2])
            if high - low >= _MOST:
                raise SchemaError(f"{text}: expected a range of at most {_MOST:,} names, found {{{inner}}}")
            parts = [f"{n:0{len(numbers[1])}d}" for n in range(low, high + 1)]
        elif "," in inner:
            parts = inner.split(",")
        else:
            break
        if not parts or len(parts) * len(out) > _MOST:
            raise SchemaError(f"{text}: expected braces that stand for 1 to {_MOST:,} names, found {{{inner}}}")
        ends = [(one[: m.start()], one[m.end() :]) for one in out if (m := _BRACES.search(one)) is not None]
        out = [f"{before}{part}{after}" for before, after in ends for part in parts]
    return out


def _local(path: str, unreadable: Unreadable) -> Files:
    if not os.path.isdir(path):
        file = _stat(path, os.path.basename(path), unreadable)
        return Files(path, os.path.dirname(path), [] if file is None else [file])
    return Files(path, path, list(_walk(path, unreadable)))


def _listed(paths: Sequence[str], id: str, unreadable: Unreadable, shown: str) -> Files:
    if not paths:
        raise SchemaError(f"nothing at {shown}: expected a file, a folder, a glob or a URL")
    absolute = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    files: dict[str, FileInfo] = {}
    for path in absolute:
        if not os.path.exists(path):
            unreadable(path, "there is no such file")
        elif os.path.isdir(path):
            below = os.path.relpath(path, root)
            for file in _walk(path, unreadable):
                name = file.name if below == "." else f"{below}/{file.name}"
                files[name] = FileInfo(name, file.size, file.stamp)
        elif (one := _stat(path, os.path.relpath(path, root), unreadable)) is not None:
            files[one.name] = one
    return Files(id, root, list(files.values()))


def _walk(folder: str, unreadable: Unreadable) -> Iterator[FileInfo]:
    """All files below a folder, in the order of their names."""
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(folder, "", frozenset())]
    while stack:
        path, below, above = stack.pop()
        try:
            about = os.stat(path)
            here = (about.st_dev, about.st_ino)
            if here in above:
                unreadable(below, "a link to a folder above it: not followed")
                continue
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            unreadable(below or path, error.strerror or str(error))
            continue
        folders: list[tuple[str, str, frozenset[tuple[int, int]]]] = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _OF_SYSTEMS:
                continue
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                folders.append((entry.path, name, above | {here}))
            elif (file := _stat(entry.path, name, unreadable)) is not None:
                yield file
        stack += reversed(folders)


def _stat(path: str, name: str, unreadable: Unreadable) -> FileInfo | None:
    """A regular file. Broken links are named, and so are pipes, which would block."""
    try:
        name.encode()
        found = os.stat(path)
    except UnicodeEncodeError:
        unreadable(os.fsencode(name).decode(errors="backslashreplace"), "its name is no valid Unicode: rename it")
        return None
    except OSError as error:
        unreadable(name, error.strerror or str(error))
        return None
    if not stat.S_ISREG(found.st_mode):
        unreadable(name, "is no regular file")
        return None
    return FileInfo(name, found.st_size, str(found.st_mtime_ns))


def _remote_files(root: str) -> RemoteFiles:
    from tensordb_data.blobs.stores.remote_files import RemoteFiles

    return RemoteFiles(root)


def _remote(url: str) -> Files:
    expanded = _expanded(url)
    if len(expanded) > 1:
        return _remotes(expanded, url)
    folder, _, name = url.rpartition("/")
    if not url.startswith("http"):
        prefix = re.split(r"[*?\[]", url, maxsplit=1)[0]
        if prefix != url:  # a glob
            root = prefix.rpartition("/")[0]
            match = re.compile(glob_pattern(url[len(root) + 1 :]))
            files = [file for file in _list(root) if match.fullmatch(file.name)]
            if not files:
                raise SchemaError(f"nothing at {url}")
            return Files(url, root, files)
        try:
            return Files(url, folder, [_head(folder, name)])
        except StorageError:
            files = list(_list(url))
        if not files:
            raise SchemaError(f"nothing at {url}: expected a file, a folder, a glob or a URL")
        return Files(url, url, files)
    return Files(url, folder, [_head(folder, name)])


def _remotes(urls: Sequence[str], id: str | None = None) -> Files:
    urls = [one for url in urls for one in _expanded(url)]
    folders = [url.split("/")[:-1] for url in urls]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    root = "/".join(parts[0] for parts in same)
    if root.count("/") < 2 or not re.match(r"\w+://[^/]+", root):
        raise SchemaError(f"expected URLs of one bucket or host, found {urls[0]} and {urls[-1]}")
    opened = _remote_files(root)
    files = []
    for url in urls:
        found = opened.head(url[len(root) + 1 :])
        files.append(FileInfo(found.key, found.size, found.stamp or None))
    return Files(id or "\n".join(sorted(urls)), root, files)


def _list(root: str) -> Iterator[FileInfo]:
    for found in sorted(_remote_files(root).list()):
        parts = found.key.split("/")
        if found.size and not any(part.startswith(".") or part in _OF_SYSTEMS for part in parts):
            yield FileInfo(found.key, found.size, found.stamp or None)


def _head(root: str, name: str) -> FileInfo:
    found = _remote_files(root).head(name)
    return FileInfo(name, found.size, found.stamp or None)


def glob_pattern(pattern: str) -> str:
    """A glob as a regular expression: `*` stays within a folder, `**` does not."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif pattern[at] == "?":
            out, at = out + "[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            out, at = out + "[" + ("^" + inner[1:] if inner[0] == "!" else inner) + "]", end + 1
        else:
            out, at = out + re.escape(pattern[at]), at + 1
    return out


def as_text(file: BinaryIO, encoding: str) -> io.TextIOWrapper:
    """An open file as text, with its line ends as they are."""
    return io.TextIOWrapper(cast("io.BufferedReader", file), encoding=encoding, newline="")
