"""Check the arguments of `db.jobs.push`, and make them into the document of a job."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import bson
from bson import ObjectId

from tensordb_data.common.bson_values import plain
from tensordb_data.common.import_paths import split
from tensordb_data.common.options import OptionGroup, Written
from tensordb_data.errors import ArchitectureError, QueryError
from tensordb_data.jobs.shape import MOST_PUSHED
from tensordb_data.query.query import Query
from tensordb_data.query.tags import clean_tags
from tensordb_data.warehouse.record import Record

# What an entry point gets besides its arguments: a Selection for each query, and the others if it has such parameters.
QUERIES = {"data": "data", "architecture": "architectures", "params": "params"}
GIVEN = ("job", "db")
MOST_BYTES = 4_000_000  # of the arguments


@dataclass(frozen=True, kw_only=True)
class JobLimits(OptionGroup):
    """How long and how often a job may be tried.

    Raises:
        QueryError: A value is outside its range.
    """

    time_limit: float | None = None
    """Seconds after which a worker stops an attempt."""
    max_attempts: int = 3
    """How often the job may be begun."""
    backoff: float = 5.0
    """Seconds before the second attempt, doubled before each further one, at most an hour."""

    def _check(self, written: Written) -> None:
        _whole(written("max_attempts"), self.max_attempts, 1, 1_000_000)
        seconds(written("backoff"), self.backoff, zero=True)
        if self.time_limit is not None:
            seconds(written("time_limit"), self.time_limit)


@dataclass(frozen=True, kw_only=True)
class JobSpec(OptionGroup):
    """A job as it is pushed: `db.jobs.push(spec)`. `dataclasses.replace(spec, args=...)` makes another one of it.

    The fields are the options of `db.jobs.push`, and are described there.

    Raises:
        QueryError: A value is malformed.
    """

    kind: str
    entry: str | None = None
    script: str | None = None
    args: Mapping[str, Any] | None = None
    data: Any = None
    architecture: Any = None
    params: Any = None
    priority: int = 0
    requires: Mapping[str, float] | None = None
    after: Sequence[Any] = ()
    after_any: Sequence[Any] = ()
    unique: str | None = None
    start: dt.datetime | float | None = None
    tags: Sequence[str] = ()
    limits: JobLimits = field(default_factory=JobLimits)

    def _check(self, written: Written) -> None:
        _text(written("kind"), self.kind)
        _code(self.entry, self.script, written)
        tidy: dict[str, Any] = {
            "args": _args(self.args),
            "requires": check_resources("requires", self.requires),
            "after": tuple(_upstream(written("after"), self.after) if self.after else ()),
            "after_any": tuple(_upstream(written("after_any"), self.after_any) if self.after_any else ()),
            "tags": tuple(_tags(self.tags)),
        }
        for name in QUERIES:
            if (value := getattr(self, name)) is not None:
                tidy[name] = _query(name, value)
        _whole(written("priority"), self.priority, -(2**31), 2**31)
        if self.unique is not None:
            _text(written("unique"), self.unique)
        start_time(self.start)
        if not isinstance(self.limits, JobLimits):
            raise QueryError(f"{written('limits')} is a JobLimits(max_attempts=3); found {self.limits!r:.200}")
        for name, value in tidy.items():
            object.__setattr__(self, name, value)

    def document(self, project: str) -> dict[str, Any]:
        """The document of a new job, without its times."""
        document: dict[str, Any] = {
            "_id": ObjectId(),
            "kind": self.kind,
            **({"entry": self.entry} if self.script is None else {"script": self.script}),
            "args": self.args,
            **{name: getattr(self, name).to_json() for name in QUERIES if getattr(self, name) is not None},
            "tags": list(self.tags),
            "priority": self.priority,
            "requires": dict(self.requires or {}),
            "status": "waiting" if self.after or self.after_any else "ready",
            "attempts": 0,
            "max_attempts": self.limits.max_attempts,
            "backoff": float(self.limits.backoff),
            "_tdb": {"p": project},
        }
        document["_tdb"]["needs"] = sorted(name for name, amount in document["requires"].items() if amount > 0)
        if self.after:
            document["after"] = list(self.after)
        if self.after_any:
            document["after_any"] = list(self.after_any)
        if self.unique is not None:
            document["unique"] = document["_tdb"]["key"] = self.unique
        if self.limits.time_limit is not None:
            document["time_limit"] = float(self.limits.time_limit)
        if len(bson.encode(document)) > MOST_PUSHED:
            raise QueryError(
                f"a job takes at most {MOST_PUSHED / 1e6:g} MB with its queries; mark the samples with a tag, say, and"
                " query that"
            )
        return document


class LimitOptions(TypedDict, total=False):
    """The limits of a job: `limits=JobLimits(...)`, or `max_attempts=` by itself."""

    limits: JobLimits | None
    """How long and how often the job may be tried."""
    max_attempts: int | None
    """Shorthand of `JobLimits(max_attempts=)`."""


class PushOptions(LimitOptions, total=False):
    """The limits of a job, and what few jobs need."""

    after_any: Sequence[Any]
    """Jobs that must have ended first, in whatever way."""

    script: str | None
    """The text of a program, see `push_script`."""


class JobOptions(LimitOptions, total=False):
    """The options of `db.jobs.push` besides what is run. They are described there."""

    args: Mapping[str, Any] | None
    data: Any
    architecture: Any
    params: Any
    priority: int
    requires: Mapping[str, float] | None
    after: Sequence[Any]
    after_any: Sequence[Any]
    unique: str | None
    start: dt.datetime | float | None
    tags: Sequence[str]


def limits_of(options: LimitOptions) -> JobLimits:
    """The limits that options name.

    Raises:
        QueryError: Limits are given together with their shorthand.
    """
    limits, attempts = options.get("limits"), options.get("max_attempts")
    if limits is not None and attempts is not None:
        raise QueryError("limits= and max_attempts= are both given: give limits=JobLimits(max_attempts=) alone")
    if attempts is not None:
        return JobLimits.spelled({"max_attempts": attempts}, {})
    return JobLimits() if limits is None else limits


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


def kinds_list(kinds: Sequence[str] | None) -> list[str] | None:
    """The kinds that a worker takes; None for all.

    Raises:
        QueryError: It is not a list of names.
    """
    if kinds is None:
        return None
    if isinstance(kinds, str) or not kinds:
        raise QueryError(f'kinds= is a list such as ["train"], or None for every kind; found {kinds!r}')
    return [_text("kinds=", kind) for kind in kinds]


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
    return {"$add": ["$$NOW", round(seconds("start=", start, zero=True) * 1000)]}


def _code(entry: str | None, script: str | None, written: Written) -> None:
    if (entry is None) == (script is None):
        raise QueryError('give a job either entry="mypkg.jobs:train", or script="..." for workers that allow scripts')
    if script is not None:
        if len(_text(written("script"), script)) > 1_000_000:
            raise QueryError(
                f"{written('script')} holds more than a million characters; put the code into a package and name it"
                " with entry="
            )
        return
    try:
        module, _ = split(entry)  # type: ignore[arg-type]
    except ArchitectureError:
        what = written("entry")
        raise QueryError(f'{what} names a function, such as "mypkg.jobs:train"; found {entry!r:.200}') from None
    if module == "__main__":
        raise QueryError(f"entry={entry!r} is of the program that runs now, where no worker finds it; move it into a"
                         " module")  # fmt: skip


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


def _upstream(what: str, after: Sequence[Any]) -> list[ObjectId]:
    if isinstance(after, (str, Mapping)) or not isinstance(after, Sequence):
        raise QueryError(f"{what} is a list of jobs, or of their ids; found {after!r:.200}")
    ids = [job.id if isinstance(job, Record) else job for job in after]
    for id in ids:
        if not isinstance(id, ObjectId):
            raise QueryError(f"{what} is a list of jobs, or of their ids; found {id!r:.200} in it")
    return list(dict.fromkeys(ids))


def _tags(tags: Sequence[str]) -> list[str]:
    if isinstance(tags, str):
        raise QueryError(f"tags is a list of strings; found the string {tags!r}")
    return clean_tags(tags) if tags else []


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value or value != value.encode(errors="replace").decode():
        raise QueryError(f"{what} is a non-empty string; found {value!r:.200}")
    return value


def _whole(what: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < most:
        raise QueryError(f"{what} is an integer from {least} on; found {value!r:.200}")
    return value


def seconds(what: str, value: object, *, zero: bool = False) -> float:
    """`value` if it is a number of seconds.

    Raises:
        QueryError: It is not.
    """
    ok = not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < 1e9 and (zero or value > 0)
    if not ok:
        least = "0 or more" if zero else "more than 0"
        raise QueryError(f"{what} is a number of seconds, {least}; found {value!r:.200}")
    return float(value)  # type: ignore[arg-type]
