"""Read files of `torch.save`: their tensors and plain values, and never code that is pickled in them."""

from __future__ import annotations

import io
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensordb_data.errors import CheckpointError
from tensordb_data.tensors.leaf import as_leaf, import_torch
from tensordb_data.tensors.tree import StateDict, show

_NODES = 5_000_000  # values of a state: a pickle of a few bytes can have any number of them
_LARGEST_INT = 10_000  # bits; Python itself refuses to write longer ones as text
_SPARE = 64 << 20  # bytes that tensors may have more than four times those of their file
_PLAIN = (bool, int, float, str, bytes, bytearray, type(None))


def read_torch(path: Path) -> tuple[Any, dict[str, str]]:
    """Read a file of `torch.save`.

    Returns:
        What it holds, without the objects that cannot be stored; and their places, with what they are.

    Raises:
        MissingExtraError: torch is not installed.
        CheckpointError: The file is damaged, holds code, or asks for far more memory than it has bytes.
    """
    torch = import_torch()
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    raise ValueError("its parts claim more bytes than the file has")
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with open(path, "rb", buffering=0) as raw:
                found = torch.load(_Bounded(raw, size), map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises is anything
        line = str(error).strip().splitlines()
        reason = next((one.strip() for one in line if "Unsupported" in one or "GLOBAL" in one), line[0] if line else "")
        raise CheckpointError(
            f"{path} cannot be read as tensors and plain values: {type(error).__name__}: {reason:.300}. Nothing else "
            "is read, since a pickle may run code. Where you trust the file: load it yourself, and give its "
            "state_dict() to db.params.save()."
        ) from None
    cleaner = _Cleaner(torch, 4 * size + _SPARE)
    try:
        kept = cleaner.clean(found, ())
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply, or contains itself") from None
    except _TooMuch as error:
        raise CheckpointError(f"{path} has {size:,} bytes, and {error}: not what torch.save makes of a model") from None
    except (RuntimeError, CheckpointError) as error:  # of a tensor that cannot be stored, which it names
        raise CheckpointError(f"{path}: {error}") from None
    if kept is _GONE:
        raise CheckpointError(f"{path}: expected tensors, found a {type(found).__name__}")
    return kept, cleaner.left_out


class _Bounded(io.BufferedReader):
    """A file that makes no room for more bytes than it has, whatever length a pickle claims."""

    def __init__(self, raw: io.FileIO, size: int) -> None:
        super().__init__(raw)
        self._size = size

    def read(self, n: int | None = -1) -> bytes:
        return super().read(self._size if n is None or n < 0 else min(n, self._size))


class _TooMuch(Exception):
    """A state is far larger than its file."""


class _Cleaner:
    """Copies a state without what cannot be stored."""

    def __init__(self, torch: Any, most: int) -> None:
        self.left_out: dict[str, str] = {}
        self._torch = torch
        self._most = most
        self._nbytes = self._nodes = 0
        self._seen: set[Any] = set()

    def clean(self, value: Any, path: tuple[str | int, ...]) -> Any:
        """A value without what cannot be stored; `_GONE` if it is itself that."""
        self._nodes += 1
        if self._nodes > _NODES:
            raise _TooMuch(f"more than {_NODES:,} values")
        if isinstance(value, self._torch.Tensor):
            self._weigh(value, path)
            return value.detach()
        if isinstance(value, dict):
            return self._dict(value, path)
        if type(value) is list or isinstance(value, tuple):
            items = [self.clean(item, (*path, i)) for i, item in enumerate(value)]
            # the others keep their places
            items = [None if item is _GONE else item for item in items]
            return items if type(value) is list else tuple(items)
        if type(value) is int and value.bit_length() > _LARGEST_INT:
            self.left_out[_place(path)] = f"a number of {value.bit_length():,} bits"
            return _GONE
        if type(value) in _PLAIN:
            self._weigh_bytes(value)
            return value
        self.left_out[_place(path)] = f"a {type(value).__name__}"
        return _GONE

    def _dict(self, value: Mapping[Any, Any], path: tuple[str | int, ...]) -> Any:
        kind = Counter if isinstance(value, Counter) else OrderedDict if isinstance(value, OrderedDict) else dict
        found: Any = StateDict() if hasattr(value, "_metadata") else kind()
        if isinstance(found, StateDict):
            found._metadata = value._metadata if isinstance(value._metadata, dict) else {}  # type: ignore[attr-defined]
        for key, item in value.items():
            if type(key) not in (str, int) or (type(key) is int and key.bit_length() > _LARGEST_INT):
                self.left_out[_place((*path, f"entry {len(found)}"))] = f"its key is a {type(key).__name__}"
            elif (kept := self.clean(item, (*path, key))) is not _GONE:
                found[key] = kept
        return found

    def _weigh(self, value: Any, path: tuple[str | int, ...]) -> None:
        """Refuse tensors that repeat few bytes without end, before anybody writes them out."""
        leaf = as_leaf(value, "", lambda: show(path))
        assert leaf is not None
        if leaf.identity not in self._seen:
            self._seen.add(leaf.identity)
            self._add(leaf.nbytes)

    def _weigh_bytes(self, value: Any) -> None:
        if isinstance(value, (bytes, bytearray, str)):
            self._add(len(value))

    def _add(self, nbytes: int) -> None:
        self._nbytes += nbytes
        if self._nbytes > self._most:
            raise _TooMuch(f"its tensors have {self._nbytes:,} or more")


def _place(path: tuple[str | int, ...]) -> str:
    return show(path).removeprefix("state") or "the whole"


_GONE: Any = object()
