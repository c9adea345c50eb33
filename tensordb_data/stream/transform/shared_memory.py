"""SharedBuffer: passes values between two processes. Arrays go through shared memory, all else through a pipe.

What goes through the pipe is written by `marshal`, as numbers, text, bytes and containers of them. Unlike a pickle, it
runs no code when it is read. Both processes run the same interpreter.
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

from tensordb_data.common.system.files import nameless_file, read_into, write_at
from tensordb_data.schema.array import numpy_dtype

_PLAIN = (type(None), bool, int, float, complex, str)
_LARGE = 1 << 10  # a bytes value of this length or more goes through shared memory


class SharedBuffer:
    """Memory that two processes share. It is a file without a name, so it is gone when both have ended, in any way."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def new(cls) -> SharedBuffer:
        """Make an empty buffer."""
        return cls(nameless_file("tensordb-stream"))

    def send(self, connection: Connection, pid: int) -> None:
        """Share the buffer with the process at the other end, which calls `receive`."""
        send_handle(connection, self._fd, pid)

    @classmethod
    def receive(cls, connection: Connection) -> SharedBuffer:
        """Receive the buffer that the process at the other end sends."""
        return cls(recv_handle(connection))

    def close(self) -> None:
        """Release the buffer in this process."""
        os.close(self._fd)

    def write(self, value: Any) -> bytes:
        """Write a value of arrays, numbers, text, bytes, lists, tuples and dicts. It replaces the value before.

        Returns:
            A description of the value, which `read` needs.

        Raises:
            TypeError: The value is of another kind. The message says which.
        """
        parts: list[memoryview] = []
        description = marshal.dumps(describe(value, parts))
        offset = 0
        for part in parts:
            while part:
                written = write_at(self._fd, part, offset)
                part, offset = part[written:], offset + written
        return description

    def read(self, description: bytes) -> Any:
        """Read the value that was written last. It is copied out of the buffer."""
        return _PartReader(self._fd).value(marshal.loads(description))


def describe(value: Any, parts: list[memoryview]) -> Any:
    """Describe a value by numbers, text, and lists and dicts of them.

    A tuple in the description stands for any other value: it names the kind, and says how to read it. The bytes of
    arrays are not in the description.

    Args:
        value: The value.
        parts: The bytes of the arrays are appended to it.

    Raises:
        TypeError: The value cannot be sent.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        dtype = value.dtype.name if value.dtype.type.__module__ == "ml_dtypes" else value.dtype.str
        if value.dtype.hasobject or _dtype(dtype) != value.dtype:
            raise TypeError(f"an array of {value.dtype}")
        array = np.asarray(value, order="C")
        if array.nbytes:
            parts.append(array.reshape(-1).view(np.uint8).data)
        return "array" if isinstance(value, np.ndarray) else "number", dtype, array.shape
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


def _dtype(name: str) -> np.dtype[Any]:
    """The dtype of a description: `<f4` of NumPy, which says the byte order; or the name of one of ml_dtypes."""
    found: np.dtype[Any] = np.dtype(name) if name[0] in "<>|=" else numpy_dtype(name)
    return found


def _key(key: Any) -> Any:
    if type(key) not in _PLAIN:
        raise TypeError(f"a dict with a key of type {type(key).__qualname__}")
    return key


class _PartReader:
    """Reads the parts of a buffer, one after the other."""

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
        array = self._array(_dtype(rest[0]), rest[1])
        return array if kind == "array" else array[()]

    def _array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        array = np.empty(shape, dtype)
        if array.nbytes:
            view = array.reshape(-1).view(np.uint8).data
            while view:
                read = read_into(self._fd, view, self._offset)
                if not read:
                    raise EOFError("a shared buffer ends before the last part of its value")
                view, self._offset = view[read:], self._offset + read
        return array
