"""Store the result of a job: as much as the index can hold, so that no training is lost for a part of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tensordb_data.common.bson_values import MAX_DEPTH, plain
from tensordb_data.errors import QueryError
from tensordb_data.warehouse.record import Record

_ROOM = 4_000_000  # bytes
_LARGE = 10_000  # bytes of a value that is looked at when all smaller ones have their place
_APART = 100_000  # bytes of an array as a list, from which it is stored as a blob
_ENTRY = 9  # bytes of an entry of a list, besides its value
_NAMED = 20  # parts that are left out and named
_NO_ROOM = (
    f"it has no room: a result has {_ROOM // 1_000_000} MB; store it with db.data or db.params, and return its _id"
)


Keep = Callable[[dict[str, Any]], Any]
"""Stores arrays by their path in the result as a checkpoint, and returns its `_id`."""


def storable(result: Any, keep: Keep | None = None) -> tuple[Any, list[str]]:
    """The part of a result that can be stored.

    Arrays become lists, and scalars of NumPy, torch and TensorFlow numbers. Keys become text. An entity becomes its
    reference, `{"collection": ..., "id": ...}`. So does an array that is large, with its `name` in a checkpoint.

    Args:
        result: The result.
        keep: Stores the large arrays. Without it, or if it fails, they become lists too, as far as there is room.

    Returns:
        Plain data, and a line for each part that is left out. In a list, None is in the place of such a part.
    """
    parts = _Parts(apart=keep is not None)
    into: dict[str, Any] = {}
    parts.put(into, "", result, "", ())
    parts.put_large()
    if keep is not None and parts.arrays:
        try:
            id = keep({name: array for name, (array, _) in parts.arrays.items()})
        except Exception as error:
            stored, left_out = storable(result)
            return stored, [*left_out, f"large arrays could not be stored as blobs: {error}"]
        for _, place in parts.arrays.values():
            place["id"] = id
    return into.get(""), parts.left_out()


class _Full(Exception):
    """A value has no room."""


class _Parts:
    def __init__(self, apart: bool) -> None:
        self.arrays: dict[str, tuple[Any, dict[str, Any]]] = {}
        """The large arrays by their path, each with the reference that is in its place."""
        self._apart = apart
        self._room = _ROOM
        self._large: list[tuple[int, Callable[[], None]]] = []
        self._left_out: list[str] = []
        self._more = 0

    def left_out(self) -> list[str]:
        return [*self._left_out, *([f"and {self._more:,} more"] if self._more else [])]

    def put(self, into: dict[str, Any], name: str, value: Any, path: str, above: tuple[int, ...]) -> None:
        """Store a value under a name, or leave it out."""
        size = 0 if self._is_apart(value) else _size(value)
        if size > _LARGE:
            into[name] = None  # its place among the others
            self._large.append((size, lambda: self._put(into, name, value, path, above)))
        else:
            self._put(into, name, value, path, above)

    def put_large(self) -> None:
        """Store the large values, the smallest first."""
        while self._large:
            self._large.sort(key=lambda one: one[0], reverse=True)
            self._large.pop()[1]()

    def _put(self, into: dict[str, Any], name: str, value: Any, path: str, above: tuple[int, ...]) -> None:
        before = self._room
        try:
            if _size(value) > self._room and not self._is_apart(value):
                raise _Full
            into[name] = self._stored(value, path, above)
            self._take(len(name.encode()) + 2)
        except _Full:
            self._room = before
            into.pop(name, None)
            self._leave_out(path, _NO_ROOM)
        except Exception as error:  # of any kind: a value may have its own code
            self._room = before
            into.pop(name, None)
            self._leave_out(path, str(error) or type(error).__name__)

    def _stored(self, value: Any, path: str, above: tuple[int, ...]) -> Any:
        if isinstance(value, Record):
            return self._stored({"collection": value.collection, "id": value.id}, path, above)
        if isinstance(value, (Mapping, list, tuple)):
            if id(value) in above:
                raise QueryError("it holds itself")
            if len(above) > MAX_DEPTH:
                raise QueryError(f"it is nested deeper than {MAX_DEPTH} levels")
            self._take(5)
            inner = (*above, id(value))
            return self._mapping(value, path, inner) if isinstance(value, Mapping) else self._list(value, path, inner)
        if self._is_apart(value):
            name = path or "result"
            place: dict[str, Any] = {"collection": "params", "id": None, "name": name}
            self._take(len(name.encode()) + 100)
            self.arrays[name] = (value if hasattr(value, "detach") else np.asarray(value), place)
            return place
        if _is_array(value):
            return self._array(value)
        return self._leaf(value)

    def _is_apart(self, value: Any) -> bool:
        """Whether a value is an array of numbers that is large enough for a blob."""
        if not self._apart or not _is_array(value) or _size(value) <= _APART:
            return False
        return hasattr(value, "detach") or getattr(getattr(value, "dtype", None), "kind", "") in tuple("biufc")

    def _mapping(self, value: Mapping[Any, Any], path: str, above: tuple[int, ...]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, item in value.items():
            name = _key(key)
            at = f"{path}.{name}" if path else name
            if wrong := _wrong_key(name):
                self._leave_out(at, wrong)
            elif name in out:
                self._leave_out(at, f"another key is {name!r} as a text too")
            else:
                self.put(out, name, item, at, above)
        return out

    def _list(self, value: list[Any] | tuple[Any, ...], path: str, above: tuple[int, ...]) -> list[Any]:
        """A list as a whole: what has no room in it has the list left out."""
        out = []
        for number, item in enumerate(value):
            self._take(_ENTRY)
            at = f"{path}.{number}" if path else str(number)
            try:
                out.append(self._stored(item, at, above))
            except _Full:
                raise
            except Exception as error:
                out.append(None)
                self._leave_out(at, str(error) or type(error).__name__)
        return out

    def _array(self, value: Any) -> Any:
        dtype = getattr(value, "dtype", None)
        if getattr(dtype, "kind", "") in ("M", "m"):
            raise QueryError(f"an array of {dtype} cannot be stored; convert it to numbers or datetimes")
        tolist = getattr(value, "tolist", None)
        out = plain(np.asarray(value).tolist() if tolist is None else tolist(), QueryError)
        self._take(_bytes(out))
        return out

    def _leaf(self, value: Any) -> Any:
        out = plain(value, QueryError)
        self._take(_bytes(out))
        return out

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise _Full

    def _leave_out(self, path: str, why: str) -> None:
        if len(self._left_out) < _NAMED:
            line = f"{path or 'the result'}: {why}".encode(errors="backslashreplace").decode()
            self._left_out.append(line if len(line) <= 500 else f"{line[:497]}...")
        else:
            self._more += 1


def _key(key: object) -> str:
    if isinstance(key, np.generic):
        key = key.item()
    return key if isinstance(key, str) else str(key)


def _wrong_key(name: str) -> str | None:
    if name.startswith("$") or "\0" in name or name != name.encode(errors="replace").decode():
        return "a key is valid text, without NUL and a '$' at its beginning"
    return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and tuple(getattr(value, "shape", ())) != ()


def _size(value: Any) -> int:
    """About how many bytes a value takes, as far as that is known without a look at its parts."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    if isinstance(value, (list, tuple)):
        return _ENTRY * len(value)
    if _is_array(value):
        size = 1
        for length in value.shape:
            size *= int(length)
        return (_ENTRY + 8) * size
    return 0


def _bytes(value: Any) -> int:
    if isinstance(value, list):
        return 5 + sum(_ENTRY + _bytes(item) for item in value)
    if isinstance(value, str):
        return 5 + len(value.encode())
    return 5 + len(value) if isinstance(value, bytes) else 24 if not isinstance(value, (int, float)) else 8
