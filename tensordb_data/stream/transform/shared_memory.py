"""Parcel: values on their way between two processes. Arrays go through shared memory, what holds them as plain values.

The form of the latter is `marshal`: numbers, text, bytes and containers of them, exactly, of which none runs anything
when it is read. Both ends are the same interpreter.
"""

from __future__ import annotations

import datetime
import marshal
import os
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import bson
import numpy as np
from numpy.typing import NDArray

_PLAIN = (type(None), bool, int, float, complex, str)
_LARGE = 1 << 10  # bytes from which on a value goes through shared memory


class SharedBuffer:
    """Memory that two processes share, as a file without a name: it is gone when both are, however they end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def new(cls) -> SharedBuffer:
        """An empty one."""
        return cls(os.memfd_create("tensordb-stream", os.MFD_CLOEXEC))

    def send(self, connection: Connection, pid: int) -> None:
        """Share it with the process at the other end, which calls `receive`."""
        send_handle(connection, self._fd, pid)

    @classmethod
    def receive(cls, connection: Connection) -> SharedBuffer:
        """The box that the process at the other end sends."""
        return cls(recv_handle(connection))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def write(self, value: Any) -> bytes:
        """Write a value of arrays, numbers, text, bytes, lists, tuples and dicts; what the box held before is lost.

        Returns:
            What `unpack` needs to find it.

        Raises:
            TypeError: another kind of value; says which.
        """
        parts: list[memoryview] = []
        description = marshal.dumps(describe(value, parts))
        offset = 0
        for part in parts:
            while part:
                written = os.pwrite(self._fd, part, offset)
                part, offset = part[written:], offset + written
        return description

    def read(self, description: bytes) -> Any:
        """The value of the last `pack`, in memory of its own."""
        return _PartReader(self._fd).value(marshal.loads(description))


def describe(value: Any, parts: list[memoryview]) -> Any:
    """`value` as numbers, text and containers of them, in which a tuple stands for what is none of these.

    Raises:
        TypeError: it cannot be sent.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject or np.dtype(value.dtype.str) != value.dtype:
            raise TypeError(f"an array of {value.dtype}")
        array = np.asarray(value, order="C")
        if array.nbytes:
            parts.append(array.reshape(-1).view(np.uint8).data)
        return "array" if isinstance(value, np.ndarray) else "number", array.dtype.str, array.shape
    if kind is bytes:
        if len(value) < _LARGE:
            return value
        parts.append(memoryview(value))
        return "bytes", len(value)
    if kind is list:
        return [describe(item, parts) for item in value]
    if kind is tuple:
        return "tuple", [describe(item, parts) for item in value]
    if kind is dict:
        return {_key(key): describe(item, parts) for key, item in value.items()}
    if kind is datetime.datetime:
        return "time", value.isoformat()
    if kind.__module__.partition(".")[0] == "bson":
        return "bson", bson.encode({"": value})
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__}")


def _key(key: Any) -> Any:
    if type(key) not in _PLAIN:
        raise TypeError(f"a dict with a key of type {type(key).__qualname__}")
    return key


class _PartReader:
    """Reads the parts of a box one after the other."""

    def __init__(self, fd: int) -> None:
        self._fd, self._offset = fd, 0

    def value(self, describe: Any) -> Any:
        if isinstance(describe, list):
            return [self.value(item) for item in describe]
        if isinstance(describe, dict):
            return {key: self.value(item) for key, item in describe.items()}
        if not isinstance(describe, tuple):
            return describe
        kind, *rest = describe
        if kind == "bytes":
            return self._array(np.dtype(np.uint8), (rest[0],)).tobytes()
        if kind == "tuple":
            return tuple(self.value(rest[0]))
        if kind == "time":
            return datetime.datetime.fromisoformat(rest[0])
        if kind == "bson":
            return bson.decode(rest[0])[""]
        array = self._array(np.dtype(rest[0]), rest[1])
        return array if kind == "array" else array[()]

    def _array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        array = np.empty(shape, dtype)
        if array.nbytes:
            view = array.reshape(-1).view(np.uint8).data
            while view:
                read = os.preadv(self._fd, [view], self._offset)
                if not read:
                    raise EOFError("a parcel ends before its last part")
                view, self._offset = view[read:], self._offset + read
        return array
