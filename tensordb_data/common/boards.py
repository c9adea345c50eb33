"""Boards: where the processes of a training agree and do not wait for each other. Who writes a key first decides."""

from __future__ import annotations

import abc
import sys
from collections import Counter
from typing import Any
from weakref import WeakKeyDictionary

import xxhash

READ_ONLY = "read-only"
"""What processes agree on that may not write where they would agree on more."""
_PREFIX = "tensordb_data"


class Board(abc.ABC):
    """A place that all processes of a group can read and write."""

    carries = True
    """Whether what one process writes can be read by another."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    def number(self, name: str) -> int:
        """How many times this process has asked for `name` before. Processes that do alike get the same numbers."""
        self._calls[name] += 1
        return self._calls[name] - 1

    @abc.abstractmethod
    def agree(self, key: str, value: str) -> str:
        """The value of a key: what another process has written before, or `value`, which is written now."""

    def arrive(self, key: str) -> int:
        """Note that this process has come to `key`. Returns how many have; 0 if that is not known."""
        return 0


class StoreBoard(Board):
    """The store of a process group of torch.distributed.

    Args:
        store: A `torch.distributed.Store`.
    """

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = sys.modules["torch.distributed"].PrefixStore(_PREFIX, store)

    def agree(self, key: str, value: str) -> str:
        """See `Board`."""
        return bytes(self._store.compare_set(key, "", value)).decode()

    def arrive(self, key: str) -> int:
        """See `Board`."""
        return int(self._store.add(key, 1))


class JaxBoard(Board):
    """The keys and values of `jax.distributed`.

    Args:
        client: The client of its coordination service.
    """

    def __init__(self, client: Any) -> None:
        super().__init__()
        self._client = client

    def agree(self, key: str, value: str) -> str:
        """See `Board`."""
        name = f"{_PREFIX}/{key}"
        try:
            self._client.key_value_set(name, value)
        except Exception:  # its error for a key that is there has no type of its own; what was written is read below
            return str(self._client.blocking_key_value_get(name, 10_000))
        return value


class NamedBoard(Board):
    """No place: the processes share a name, and what they agree on is made from it.

    Args:
        name: The name.
    """

    carries = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def agree(self, key: str, value: str) -> str:
        """A value that all get who have the same name; `READ_ONLY` stays."""
        return value if value == READ_ONLY else xxhash.xxh3_128_hexdigest(f"{self._name}/{key}".encode())


_of_stores: WeakKeyDictionary[Any, StoreBoard] = WeakKeyDictionary()
_of_jax: list[JaxBoard] = []
_of_names: dict[str, NamedBoard] = {}


def torch_board() -> Board | None:
    """The board of the default process group of torch.distributed; None if its backend has no store (MPI)."""
    store = sys.modules["torch.distributed"].distributed_c10d._get_default_store()
    if store is None:
        return None
    if store not in _of_stores:
        _of_stores[store] = StoreBoard(store)
    return _of_stores[store]


def jax_board(client: Any) -> Board | None:
    """The board of a client of JAX; None without a client."""
    if client is None:
        return None
    if not _of_jax or _of_jax[0]._client is not client:
        _of_jax[:] = [JaxBoard(client)]
    return _of_jax[0]


def named_board(name: str) -> Board:
    """The board of a name."""
    return _of_names.setdefault(name, NamedBoard(name))
