"""The document of a run: it is made by whoever is first to write of the run, and knows its attempts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError, OperationFailure

from tensordb_data.errors import ReadOnlyError, SchemaError
from tensordb_data.mongo.errors import UNAUTHORIZED
from tensordb_data.warehouse.metrics import scalar

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

LEASE = "_tdb.saver"
"""Where in the document the claim of the saver stands."""
_UNTIL = f"${LEASE}.until"
LEFT = {"$cond": [{"$eq": [{"$type": _UNTIL}, "date"]}, {"$subtract": [_UNTIL, "$$NOW"]}, None]}
"""Milliseconds until the lease of a run runs out, for an aggregation; None without one."""
ATTEMPTS = {"$cond": [{"$isArray": "$attempts"}, "$attempts", []]}
"""The attempts of a run, for an aggregation, whatever another tool has made of them."""


def named(warehouse: Warehouse, run: str) -> dict[str, Any]:
    """The filter of the document of a run."""
    return {"_tdb.p": warehouse.project, "name": run}


def make_run(warehouse: Warehouse, run: str, config: Mapping[str, Any] | None = None, tags: Sequence[str] = ()) -> None:
    """Make the document of a run, if it is not there, and note the configuration and tags of the run."""
    change: dict[str, Any] = {
        "$setOnInsert": {"attempts": [], **({} if tags else {"tags": []})},
        **({} if config is None else {"$set": {"config": clean_config(config)}}),
        **({"$addToSet": {"tags": {"$each": list(tags)}}} if tags else {}),
    }

    def upsert() -> None:
        with contextlib.suppress(DuplicateKeyError):  # somebody else was first
            warehouse.index["runs"].update_one(named(warehouse, run), change, upsert=True)
            return
        warehouse.index["runs"].update_one(named(warehouse, run), change, upsert=True)

    warehouse.index.write(upsert)


def open_attempt(warehouse: Warehouse, run: str) -> Mapping[str, Any] | None:
    """The attempt of a run that is under way, to which rows and sets belong that anybody writes; None without one.

    The first to ask makes the document of the run, if he may.
    """
    if not warehouse.index.is_server:
        return None
    try:
        found = warehouse.index["runs"].find_one(named(warehouse, run), {"attempts": {"$slice": -1}})
        if found is None:
            make_run(warehouse, run)
    except ReadOnlyError:
        return None
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return None
    last = attempts_of(found or {})
    return last[-1] if last and last[-1].get("state") == "running" else None


def attempts_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The attempts of a run, without what another tool has put there that is none."""
    found = document.get("attempts")
    return [each for each in found if _is_attempt(each)] if isinstance(found, list) else []


def _is_attempt(found: Any) -> bool:
    if not isinstance(found, Mapping) or not isinstance(found.get("id"), ObjectId):
        return False
    after = found.get("after")
    return after is None or (isinstance(after, Mapping) and "attempt" in after and type(after.get("step")) is int)


def marks(attempt: Mapping[str, Any] | None) -> dict[str, ObjectId]:
    """What rows and sets know of their attempt, for their `_tdb`."""
    if attempt is None:
        return {}
    line = attempt.get("line")
    return {"a": attempt["id"], **({} if line is None else {"line": line})}


def clean_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run as the index can hold it: names and plain values, nested as they are.

    Raises:
        SchemaError: It is no dict, or holds something else.
    """
    if not isinstance(config, Mapping):
        raise SchemaError(f'config= is a dict such as {{"lr": 0.01}}; found a {type(config).__name__}')
    found = {}
    for name, value in config.items():
        if not isinstance(name, str) or not name or name[0] == "$" or "." in name or "\0" in name:
            raise SchemaError(
                f"config=: a name is a non-empty string without '.' and not beginning with '$'; found {name!r:.200}"
            )
        found[name] = clean_config(value) if isinstance(value, Mapping) else scalar(name, value)
    return found
