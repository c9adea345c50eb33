"""Files of text that gzip, bzip2, xz or zstd has compressed, read as they are expanded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import zstandard

from tensordb_data.common.zstd import decompressor
from tensordb_data.errors import SchemaError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""How names of compressed files end."""


def with_compressed(suffixes: Iterable[str]) -> tuple[str, ...]:
    """Some suffixes, and these with that of a compression behind them."""
    return tuple(f"{suffix}{end}" for end in ("", *COMPRESSED) for suffix in suffixes)


def plain_name(name: str) -> str:
    """The name of a file in lower case, without the suffix of a compression."""
    name = name.lower()
    return next((name[: -len(end)] for end in COMPRESSED if name.endswith(end)), name)


def expanded(file: BinaryIO, name: str) -> BinaryIO:
    """An open file; if its name says that it is compressed, what it expands to."""
    name = name.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, _Expanded(gzip.GzipFile(fileobj=file), file))
    if name.endswith(".bz2"):
        return cast(BinaryIO, _Expanded(bz2.BZ2File(file), file))
    if name.endswith(".xz"):
        return cast(BinaryIO, _Expanded(lzma.LZMAFile(file), file))
    if name.endswith(".zst"):
        return cast(BinaryIO, _Expanded(decompressor().stream_reader(file, read_across_frames=True), file))
    return file


class _Expanded(io.BufferedReader):
    """Closes the compressed file, too."""

    def __init__(self, raw: object, file: BinaryIO) -> None:
        super().__init__(cast(io.RawIOBase, raw))
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()


@contextmanager
def named_damage(path: str) -> Iterator[None]:
    """Errors of a compressed file name it.

    Raises:
        SchemaError: It is damaged.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise SchemaError(f"{path}: expected a whole compressed file: {error}") from None
    except OSError as error:
        if error.errno is not None or not path.lower().endswith(".bz2"):
            raise
        raise SchemaError(f"{path}: expected a whole compressed file: {error}") from None
