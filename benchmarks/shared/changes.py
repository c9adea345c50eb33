"""What changes cost, and what they save the next plan: `benchmarks/plan.py --changes`.

An update is done in three ways, in turn: as it was before there were stamps and a log, with stamps, and with the log as
well. Then the next plan is made from the one of before, and read as a whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
from bson import ObjectId

PLAIN, STAMPED, LOGGED = "update, no stamps and no log", "update with stamps", "update with stamps and log"


def measure(db: Any, count: int, rounds: int, planner: Callable[[Any], Any], say: Callable[[str], None]) -> Any:
    """Measure on a dataset `d` of `count` samples, each with a `label`.

    Args:
        db: The warehouse.
        count: How many samples there are.
        rounds: How often each is measured.
        planner: Makes a planner over all samples.
        say: Is told each figure.

    Returns:
        The figures, by name.
    """
    found: dict[str, Any] = {}
    step = min(10_000, count // 20)
    ids = db.data.find({"dataset": "d"}).bound.ids()
    for size, times in ((step, rounds), (1, 20 * rounds)):
        seconds: dict[str, list[float]] = {PLAIN: [], STAMPED: [], LOGGED: []}
        for number in range(times):
            ways = [*seconds][number % 3 :] + [*seconds][: number % 3]  # none of them always comes after another one
            for place, way in enumerate(ways):
                at = (3 * number + place) * size % (count - size)
                start = time.perf_counter()
                assert update(db, ids[at : at + size], len(found) * times + number, way) == size
                seconds[way].append(time.perf_counter() - start)
        for way, of in seconds.items():
            name = f"{way}, of {size:,}"
            found[name] = [1e6 * second / size for second in of]
            ratio = statistics.median(a / b for a, b in zip(of, seconds[STAMPED], strict=True))
            say(f"{name}: {statistics.median(found[name]):,.1f} µs a sample, {ratio:.2f} × with stamps")
    tenth = db.data.find({"dataset": "d"}, limit=count // 10)
    for what, change in (
        (f"after an update of {count // 10:,} of {count:,}", lambda: tenth.update({"$inc": {"label": 1}})),
        ("after 1,000 were added", lambda: add(db, min(1000, count))),
    ):
        pairs = []
        for _ in range(rounds):
            planner(db).plan()
            change()
            pairs.append((plan(db, planner, whole=False), plan(db, planner, whole=True)))
        found[f"plan {what}, ms"] = [[1000 * each for each in pair] for pair in pairs]
        ratio = statistics.median(now / whole for now, whole in pairs)
        now, whole = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
        say(f"plan {what}: {now:,.1f} ms, {ratio:.3f} × that of a whole one ({whole:,.0f} ms)")
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for logged in rates:
            start = time.perf_counter()
            with unlogged() if not logged else nullcontext():
                add(db, min(60_000, count), "e")
            rates[logged].append(min(60_000, count) / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(rates[True], rates[False], strict=True))
    found["add_many, with and without log, samples/s"] = [rates[True], rates[False]]
    say(f"add_many: {statistics.median(rates[True]):,.0f} samples/s, {ratio:.3f} × those without the log")
    return found


def update(db: Any, ids: list[ObjectId], number: int, way: str) -> int:
    """Update some samples in one step."""
    from tensordb_data.samples.changes.apply import logged_update
    from tensordb_data.samples.mutations import Mutation
    from tensordb_data.samples.renamed import check_not_renamed

    changes = {"$set": {"label": 10_000 + number}, "$unset": {"provenance.label": ""}}
    with Mutation(db.warehouse, "update", ["d"], alone=True, stamps=way != PLAIN) as mutation:

        def change(some: Any, session: Any) -> int:
            check_not_renamed(db.warehouse, ["d"], ["label"], session)
            where = {"$and": [{"_tdb.p": "default"}, {"dataset": "d"}, {"_id": {"$in": some}}]}
            if way == LOGGED:
                return logged_update(db.warehouse, mutation, where, ["d"], changes, len(some), session)
            stamp = {} if way == PLAIN else {"_tdb.m": mutation.numbers["d"]}
            stamped = {**changes, "$set": {**changes["$set"], **stamp}}
            return int(db.database["data"].update_many(where, stamped, session=session).modified_count)

        return mutation.step(ids, change)


def plan(db: Any, planner: Callable[[Any], Any], *, whole: bool) -> float:
    """Seconds to the plan of now, from the newest one or read as a whole."""
    from tensordb_data.stream.passes.plan_reader import PlanReader

    start = time.perf_counter()
    if not whole:
        planner(db).plan()
    else:
        with (
            mock.patch.object(PlanReader, "cached", lambda *_: None),
            mock.patch.object(PlanReader, "_before", lambda *_: None),
        ):
            planner(db).plan()
    return time.perf_counter() - start


def add(db: Any, count: int, dataset: str = "d") -> None:
    """Add samples."""
    with db.data.writer(dataset) as writer:
        writer.add_many(x=np.zeros((count, 16), np.uint8), label=np.arange(count))


def unlogged() -> Any:
    """Commits write no entries."""
    from tensordb_data.samples.changes.commits import CommitLog

    return mock.patch.object(CommitLog, "write", lambda *_: None)
