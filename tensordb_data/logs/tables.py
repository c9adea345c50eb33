"""Tables: rows as Arrow, pandas and CSV. Rows differ in their fields; a table has a column for every one of them."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bson import ObjectId

from tensordb_data.errors import MissingExtraError, StorageError
from tensordb_data.logs.arrays import described, is_logged

_FIRST = ("_id", "run", "kind", "step", "time", "tags")


def arrow(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A `pyarrow.Table`. A column that mixes whole numbers and others is one of floats; one that mixes numbers and
    texts is one of texts.
    """
    pyarrow = _needed("pyarrow")
    return pyarrow.table({name: _column(pyarrow, values) for name, values in _columns(rows).items()})


def pandas(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A `pandas.DataFrame`."""
    return _needed("pandas").DataFrame(_columns(rows))


def write_csv(rows: Iterable[Mapping[str, Any]], path: str | Path) -> int:
    """Writes a CSV file, whole or not at all; returns the number of rows.

    Raises:
        StorageError: It cannot be written.
    """
    path = Path(path)
    names: dict[str, None] = dict.fromkeys(_FIRST)
    count = 0
    try:
        # What the columns are is known when all rows were seen: they wait as lines of JSON, not in memory.
        with tempfile.TemporaryFile("w+", dir=path.parent or ".") as waiting:
            for row in rows:
                names.update(dict.fromkeys(row))
                waiting.write(json.dumps({name: _cell(value) for name, value in row.items()}) + "\n")
                count += 1
            waiting.seek(0)
            handle, partial = tempfile.mkstemp(dir=path.parent or ".", prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(names), restval="")
                    writer.writeheader()
                    writer.writerows(json.loads(line) for line in waiting)
                os.chmod(partial, 0o666 & ~_umask())
                os.replace(partial, path)
            except BaseException:
                os.unlink(partial)
                raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    return count


def flat(rows: Iterable[Mapping[str, Any]], *, arrays: bool = False) -> Iterator[dict[str, Any]]:
    """The rows with plain values only: ids as texts, references as `collection/id`, arrays in words.

    Args:
        rows: The rows.
        arrays: Whether arrays stay as they are.
    """
    for row in rows:
        yield {
            name: value if arrays and is_logged(value) else _plain(value)
            for name, value in row.items()
            if name != "_tdb"
        }


def _plain(value: Any) -> Any:
    if isinstance(value, ObjectId):
        return str(value)
    if is_logged(value):
        return described(value)
    if isinstance(value, dict) and value.keys() == {"collection", "id"}:
        return f"{value['collection']}/{value['id']}"
    return value


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    count = 0
    for row in rows:
        for name, value in row.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = []
            if len(column) < count:
                column += [None] * (count - len(column))
            column.append(value)
        count += 1
    for column in columns.values():
        column += [None] * (count - len(column))
    return columns


def _column(pyarrow: Any, values: list[Any]) -> Any:
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError):
        present = [value for value in values if value is not None]
        if all(isinstance(value, (int, float)) for value in present):
            return pyarrow.array([None if value is None else float(value) for value in values], pyarrow.float64())
        return pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, list):
        return json.dumps(value)
    isoformat = getattr(value, "isoformat", None)
    return str(value) if isoformat is None else isoformat()


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(f"this needs {module}: pip install 'tensordb-data[tables]'") from None
