"""What a warehouse that is opened `read_only=True` stands on: a database and stores that only read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tensordb_data.errors import ReadOnlyError

_WRITES = frozenset((
    "bulk_write", "create_collection", "create_index", "create_indexes", "delete_many", "delete_one", "drop",
    "drop_collection", "drop_index", "drop_indexes", "find_one_and_delete", "find_one_and_replace",
    "find_one_and_update", "insert_many", "insert_one", "rename", "replace_one", "update_many", "update_one",
))  # fmt: skip
_COMMANDS = frozenset((
    "buildInfo", "collStats", "count", "dataSize", "dbStats", "distinct", "explain", "find", "hello",
    "listCollections", "listIndexes", "ping", "serverStatus",
))  # fmt: skip


class ReadOnly:
    """Passes on all but the methods that write, which raise.

    Args:
        given: A pymongo or mongomock database or collection, or a blob store.
    """

    def __init__(self, given: Any, name: str, refused: frozenset[str]) -> None:
        self._given, self._name, self._refused = given, name, refused

    def __getattr__(self, name: str) -> Any:
        if name in self._refused:
            return _refusing(f"{name} of {self._name}")
        return getattr(self._given, name)

    def __repr__(self) -> str:
        return f"ReadOnly({self._given!r})"


class ReadOnlyCollection(ReadOnly):
    """A collection without the methods that write."""

    def __init__(self, given: Any) -> None:
        super().__init__(given, f"the collection {given.name!r}", _WRITES)

    @property
    def database(self) -> ReadOnlyDatabase:
        """See pymongo."""
        return ReadOnlyDatabase(self._given.database)

    def with_options(self, *args: Any, **kwargs: Any) -> ReadOnlyCollection:
        """See pymongo."""
        return ReadOnlyCollection(self._given.with_options(*args, **kwargs))

    def aggregate(self, pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        """See pymongo. Stages that write are refused."""
        if any(stage in part for part in pipeline for stage in ("$out", "$merge")):
            _refuse(f"$out or $merge from {self._name}")
        return self._given.aggregate(pipeline, *args, **kwargs)

    def __getitem__(self, name: str) -> ReadOnlyCollection:
        return ReadOnlyCollection(self._given[name])


class ReadOnlyDatabase(ReadOnly):
    """A database without the methods that write."""

    def __init__(self, given: Any) -> None:
        super().__init__(given, f"the database {given.name!r}", _WRITES | {"aggregate"})

    def __getitem__(self, name: str) -> ReadOnlyCollection:
        return ReadOnlyCollection(self._given[name])

    def get_collection(self, *args: Any, **kwargs: Any) -> ReadOnlyCollection:
        """See pymongo."""
        return ReadOnlyCollection(self._given.get_collection(*args, **kwargs))

    def command(self, command: str | Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See pymongo. Only commands that are known to read are sent."""
        name = command if isinstance(command, str) else next(iter(command))
        if name not in _COMMANDS:
            _refuse(f"the command {name!r}")
        return self._given.command(command, *args, **kwargs)


class ReadOnlyStore(ReadOnly):
    """A blob store without the methods that write."""

    def __init__(self, given: Any) -> None:
        super().__init__(given, f"the blob store {given.url}", frozenset(("put", "delete")))

    def sweep(self, silent: float, dry_run: bool = False) -> tuple[int, int]:
        """See `Store`."""
        if not dry_run:
            _refuse(f"sweep of {self._name}")
        found: tuple[int, int] = self._given.sweep(silent, dry_run)
        return found


def _refusing(what: str) -> Callable[..., NoReturn]:
    return lambda *args, **kwargs: _refuse(what)


def _refuse(what: str) -> NoReturn:
    raise ReadOnlyError(f"this TensorDB was opened with read_only=True, and {what} would write: open it without")
