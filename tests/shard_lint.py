"""Which commands a sharded cluster would send to all shards, or refuse: a plugin for any of the tests.

    python -m pytest -p tests.shard_lint tests/integration/samples

There is no mongos here. So each command that the tests send is judged by the shard keys of `collection_indexes.py`. A
write of one document without its key is an error on a cluster before MongoDB 7.1. A read without the key asks all
shards, which is slow, and right where all have to be asked: `ALLOWED` says why, by the file that asks. The summary
names all others, and the run fails.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pymongo import monitoring

from tensordb_data.warehouse.collection_indexes import CHUNKS_KEY, SHARD_KEYS

CODE = Path(__file__).parent.parent
KEYS = {**SHARD_KEYS, "blobs.chunks": CHUNKS_KEY}
_QUERIES = {"find": "filter", "count": "query", "distinct": "query", "findAndModify": "query"}
_HELPERS = ("tensordb_data/warehouse/", "tensordb_data/mongo/", "tensordb_data/query/", "tensordb_data/common/")

ALLOWED = {
    "tensordb_data/api/": "a query of the user: any fields",
    "tensordb_data/cli/": "a query of the user",
    "tensordb_data/ui/": "a page of what a user asks for",
    "tensordb_data/table/": "counts and summaries of a query of the user",
    "tensordb_data/export/": "all samples of a query of the user",
    "tensordb_data/stream/": "plans, cursors and followers read a dataset, by its number or a query of the user",
    "tensordb_data/runs/": "listings of runs, over all their rows",
    "tensordb_data/logs/": "rows of a query of the user; figures over runs",
    "tensordb_data/search/": "all texts of a query, when the index of words is made anew",
    "tensordb_data/housekeeping/": "gc, fsck, rebuild and backup look at everything",
    "tensordb_data/params/": "tensors by state: lists for people",
    "tensordb_data/tensors/": "objects by their name in the store: housekeeping of a save",
    "tensordb_data/ingest/": "samples of a source, to find those that are gone",
    "tensordb_data/blobs/stores/gridfs.py": "chunks of objects that were never finished, in a gc",
    "tensordb_data/samples/compact.py": "the blobs of a dataset in documents or old segments",
    "tensordb_data/samples/commit.py": "whether a dataset is empty",
    "tensordb_data/samples/delete.py": "a query of the user",
    "tensordb_data/samples/evolve.py": "values of a field that do not fit, over a dataset",
    "tensordb_data/samples/mutations.py": "a query of the user, of which the ids are noted first",
    "tensordb_data/samples/rename.py": "all samples of a dataset",
    "tensordb_data/samples/rename_field.py": "all samples of a dataset",
    "tensordb_data/samples/update.py": "the datasets of a query of the user",
    "tensordb_data/warehouse/": "counts of samples of a dataset",
    "tests/": "a test looks for itself",
}
"""Who may ask all shards, and why. Nobody may write one document without its key."""


def judged(command: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """What is wrong with a command on a cluster, and whether it would be refused there."""
    name = next(iter(command))
    collection = command[name]
    if name == "aggregate":
        for stage in command["pipeline"]:
            other = stage.get("$lookup", {}).get("from") or stage.get("$out") or stage.get("$merge")
            if isinstance(other, str) and other in KEYS:
                yield f"{next(iter(stage))} {other}", False
    key = KEYS.get(collection) if isinstance(collection, str) else None
    if key is None:
        return
    if name == "aggregate":
        first = command["pipeline"][0] if command["pipeline"] else {}
        if not _has_key(first.get("$match", {}), key):
            yield f"aggregate {collection} without its key", False
    elif name in _QUERIES and not _has_key(command.get(_QUERIES[name]) or {}, key):
        yield f"{name} {collection} without its key", name == "findAndModify"
    elif name in ("update", "delete"):
        for one in command["updates" if name == "update" else "deletes"]:
            many = one.get("multi", False) if name == "update" else one["limit"] == 0
            if not _has_key(one["q"], key):
                yield f"{name} {collection} without its key", not many
    elif name == "createIndexes":
        for index in command["indexes"]:
            if index.get("unique") and list(index["key"])[: len(key)] != list(key):
                yield f"unique index {list(index['key'])} of {collection}", True


def _has_key(filter: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a filter names shards: by the whole key, or one that is not hashed by what it begins with."""
    equal: set[str] = set()
    for part in (filter, *filter.get("$and", ())):
        for field, value in part.items():
            compared = isinstance(value, Mapping) and any(name.startswith("$") for name in value)
            operators = value if compared else {"$eq": value}
            ordered = field == "_id" and key.get("_id") == 1  # so that a range of it names shards, too
            if operators.keys() & ({"$eq", "$in", "$gt", "$gte", "$lt", "$lte"} if ordered else {"$eq", "$in"}):
                equal.add(field)
    fields = list(key)
    return set(fields) <= equal or (len(fields) > 1 and fields[:-1] and set(fields[:-1]) <= equal)


def caller() -> str:
    """Who has sent the command: the file and line that is nearest, and no helper."""
    frame, first = sys._getframe(1), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(CODE)) and path != __file__:
            found = f"{Path(path).relative_to(CODE).as_posix()}:{frame.f_lineno}"
            first = first or found
            if not found.startswith(_HELPERS):
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return first


class Lint(monitoring.CommandListener):
    """Judges each command of this process."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.commands = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.commands += 1
        for what, refused in judged(event.command):
            place = caller()
            if (refused and not place.startswith("tests/")) or not place.startswith(tuple(ALLOWED)):
                self.found[f"{place}: {what}{', which a cluster refuses' if refused else ''}"] += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Nothing."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Nothing."""


LINT = Lint()


def pytest_configure(config: pytest.Config) -> None:
    """Listen to all clients that are made from now on."""
    monitoring.register(LINT)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if there is anything that nobody has allowed."""
    if LINT.found and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name what was found."""
    terminalreporter.section(f"commands on a sharded cluster: {LINT.commands} were sent")
    for what, times in sorted(LINT.found.items()):
        terminalreporter.line(f"{what} ({times} times)", red=True)
