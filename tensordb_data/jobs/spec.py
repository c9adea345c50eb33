"""Check the arguments of `db.jobs.push`, and make them into the document of a job."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any

import bson
from bson import ObjectId

from tensordb_data.common.bson_values import plain
from tensordb_data.common.import_paths import split
from tensordb_data.errors import ArchitectureError, QueryError
from tensordb_data.query.query import Query
from tensordb_data.query.tags import clean_tags
from tensordb_data.warehouse.record import Record

# What an entry point gets besides its arguments: a Selection for each query, and the others if it has such parameters.
QUERIES = {"data": "data", "architecture": "architectures", "params": "params"}
GIVEN = ("job", "warehouse")
MOST_BYTES = 4_000_000  # of the arguments, and of the result: the document of a job has 16 MB for everything


def job_document(
    kind: str,
    *,
    entry: str | None,
    script: str | None,
    args: Mapping[str, Any] | None,
    queries: Mapping[str, Any],
    priority: int,
    requires: Mapping[str, float] | None,
    max_attempts: int,
    backoff: float,
    after: Sequence[Any],
    unique: str | None,
    tags: Sequence[str],
    time_limit: float | None,
    project: str,
) -> dict[str, Any]:
    """The document of a new job, without its times.

    Raises:
        QueryError: Something is malformed; says what is expected.
    """
    document: dict[str, Any] = {
        "_id": ObjectId(),
        "kind": _text("kind", kind),
        **_code(entry, script),
        "args": _args(args),
        **{name: _query(name, value).to_json() for name, value in queries.items() if value is not None},
        "tags": _tags(tags),
        "priority": _whole("priority", priority, -(2**31), 2**31),
        "requires": check_resources("requires", requires),
        "status": "waiting" if after else "ready",
        "attempts": 0,
        "max_attempts": _whole("max_attempts", max_attempts, 1, 1_000_000),
        "backoff": seconds("backoff", backoff, zero=True),
        "_tdb": {"p": project},
    }
    document["_tdb"]["needs"] = sorted(name for name, amount in document["requires"].items() if amount > 0)
    if after:
        document["after"] = _upstream(after)
    if unique is not None:
        document["unique"] = document["_tdb"]["key"] = _text("unique", unique)
    if time_limit is not None:
        document["time_limit"] = seconds("time_limit", time_limit)
    return document


def check_resources(what: str, given: Mapping[str, float] | None) -> dict[str, float]:
    """Amounts by resource, such as `{"gpu": 1, "memory_gb": 16}`.

    Raises:
        QueryError: It is malformed.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise QueryError(f'{what}= is a dict such as {{"gpu": 1, "memory_gb": 16}}; found {given!r:.200}')
    out = {}
    for name, amount in given.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise QueryError(f'{what}=: a resource is named like a variable, "memory_gb" say; found {name!r:.200}')
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < math.inf:
            raise QueryError(f"{what}=: the amount of {name} is a number, 0 or more; found {amount!r:.200}")
        out[name] = amount
    return out


def result_value(value: Any) -> Any:
    """Turn a result into plain data, as the index can hold it. Scalars of NumPy, torch and TensorFlow become numbers.

    Raises:
        QueryError: It cannot be stored.
    """
    return _fitting("the result", plain(value, lambda text: QueryError(f"the result cannot be stored: {text}")))


def kinds_list(kinds: Sequence[str] | None) -> list[str] | None:
    """The kinds that a worker takes; None for all.

    Raises:
        QueryError: It is not a list of names.
    """
    if kinds is None:
        return None
    if isinstance(kinds, str) or not kinds:
        raise QueryError(f'kinds= is a list such as ["train"], or None for every kind; found {kinds!r}')
    return [_text("kinds", kind) for kind in kinds]


def start_time(start: dt.datetime | float | None) -> Any:
    """The server's expression for the time before which a job is not claimed; None for at once.

    Raises:
        QueryError: `start` is neither a time nor a number of seconds.
    """
    if start is None:
        return None
    if isinstance(start, dt.datetime):
        if start.tzinfo is None:
            raise QueryError(f"start= is a datetime with a time zone, datetime.now(timezone.utc) say; found {start!r}")
        return start
    return {"$add": ["$$NOW", round(seconds("start", start, zero=True) * 1000)]}


def _code(entry: str | None, script: str | None) -> dict[str, Any]:
    if (entry is None) == (script is None):
        raise QueryError('give a job either entry="mypkg.jobs:train", or script="..." for workers that allow scripts')
    if script is not None:
        if len(_text("script", script)) > 1_000_000:
            raise QueryError("script= holds more than a million characters; put the code into a package and name it"
                             " with entry=")  # fmt: skip
        return {"script": script}
    try:
        module, _ = split(entry)  # type: ignore[arg-type]
    except ArchitectureError:
        raise QueryError(f'entry= names a function, such as "mypkg.jobs:train"; found {entry!r:.200}') from None
    if module == "__main__":
        raise QueryError(f"entry={entry!r} is of the program that runs now, where no worker finds it; move it into a"
                         " module")  # fmt: skip
    return {"entry": entry}


def _args(args: Mapping[str, Any] | None) -> dict[str, Any]:
    if args is None:
        return {}
    if not isinstance(args, Mapping):
        raise QueryError(f'args= is a dict of keyword arguments, such as {{"lr": 0.01}}; found {args!r:.200}')
    for name in args:
        if not isinstance(name, str) or not name.isidentifier():
            raise QueryError(f"args=: an argument is named like a variable; found {name!r:.200}")
        if name in QUERIES or name in GIVEN:
            raise QueryError(f"args=: the name {name!r} is taken for what every job may be given; use another"
                             + (f", or {name}=query beside args" if name in QUERIES else ""))  # fmt: skip
    out: dict[str, Any] = plain(args, lambda text: QueryError(f"args= cannot be stored: {text}"))
    return _fitting("args=", out)  # type: ignore[no-any-return]


def _fitting(what: str, value: Any) -> Any:
    size = len(bson.encode({"": value}))
    if size > MOST_BYTES:
        raise QueryError(
            f"{what} takes {size / 1e6:.1f} MB, and a job has room for {MOST_BYTES / 1e6:g} MB; store it with db.data"
            " or db.params, and hand over a query or an _id"
        )
    return value


def _query(name: str, value: Any) -> Query:
    query = value if isinstance(value, Query) else getattr(value, "query", value)
    if not isinstance(query, Query) or query.collection != QUERIES[name]:
        found = f"one of db.{query.collection}" if isinstance(query, Query) else f"{value!r:.200}"
        raise QueryError(f"{name}= is a query of db.{QUERIES[name]}: selection.query; found {found}")
    return query


def _upstream(after: Sequence[Any]) -> list[ObjectId]:
    if isinstance(after, (str, Mapping)) or not isinstance(after, Sequence):
        raise QueryError(f"after= is a list of jobs, or of their ids; found {after!r:.200}")
    ids = [job.id if isinstance(job, Record) else job for job in after]
    for id in ids:
        if not isinstance(id, ObjectId):
            raise QueryError(f"after= is a list of jobs, or of their ids; found {id!r:.200} in it")
    return list(dict.fromkeys(ids))


def _tags(tags: Sequence[str]) -> list[str]:
    if isinstance(tags, str):
        raise QueryError(f"tags is a list of strings; found the string {tags!r}")
    return clean_tags(tags) if tags else []


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value or value != value.encode(errors="replace").decode():
        raise QueryError(f"{what}= is a non-empty string; found {value!r:.200}")
    return value


def _whole(what: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < most:
        raise QueryError(f"{what}= is an integer from {least} on; found {value!r:.200}")
    return value


def seconds(what: str, value: object, *, zero: bool = False) -> float:
    """`value` if it is a number of seconds.

    Raises:
        QueryError: It is not.
    """
    ok = not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < 1e9 and (zero or value > 0)
    if not ok:
        least = "0 or more" if zero else "more than 0"
        raise QueryError(f"{what}= is a number of seconds, {least}; found {value!r:.200}")
    return float(value)  # type: ignore[arg-type]
