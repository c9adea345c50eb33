"""B13: how long does a keyword search take among a million tagged entities, and what do writers pay for it?

Three warehouses of `--entities` samples. *Shared*: tags drawn from 200 words by Zipf's law, 5,000 different sets of
three, as datasets are tagged. *Own*: the worst case, where every entity is tagged like no other, as parameter sets of
a million runs would be: as many entries as entities. *Captions*: each sample has a text of its own, of ten words drawn
by Zipf's law from 30,000, whose words are searched. Searches of one to three words, frequent, rare, cut short and
missing; each is timed from call to hits. The entities are there, for a search looks whether what it names exists.

Writers: the same samples, with tags or with captions, through `add_many` with entries and without, in turns.

    python benchmarks/search.py --entities 1000000 --scene shared
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from bson import ObjectId
from rich.console import Console
from rich.table import Table
from shared import harness

from tensordb_data.samples.write_batch import WriteBatch
from tensordb_data.search.index import SearchIndex, search_index

TARGET, WRITING = 0.05, 0.95
WORDS, SETS, TAGS, DATASETS = 200, 5_000, 3, 10
VOCABULARY, CAPTION = 30_000, 10
SCENES = ("shared", "own", "captions")
TEXTS = ("w0", "w0 w1", "w17 w2999", "w29999", "w29998 w29999", "w0 nothing", "nothing", "w", "set w0", "set7 w2999")
SEARCHES = ("w0", "w0 w1", "w0 w1 w2", "w3 w150", "w199", "w0 nothing", "nothing", "w1", "w", "set w0", "set w7 w8")
_CHUNK = 10_000


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv, own)
    entities, rounds = (2_000, 1) if options.quick else (options.entities, options.rounds)
    times: dict[str, dict[str, list[float]]] = {}
    writing: dict[str, list[float]] = {}
    for scene in SCENES if options.scene == "all" else (options.scene,):
        with (
            tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
            harness.warehouse(Path(folder)) as db,
        ):
            fill(db, scene, entities)
            searches = TEXTS if scene == "captions" else SEARCHES
            times[scene] = {text: [timed(db, text) for _ in range(rounds + 1)][1:] for text in searches}
            what = "captions" if scene == "captions" else "tags"
            if what not in writing:
                writing[what] = writers(db, what, 2_000 if options.quick else 50_000, rounds)
    worst = max(statistics.median(of) for scene in times.values() for of in scene.values())
    ratios = {what: statistics.median(of) for what, of in writing.items()}
    result: dict[str, Any] = {
        "question": f"Keyword search among {entities:,} tagged entities",
        "quick": options.quick,
        "context": {"entities": entities, "scenes": list(times)},
        "rounds": rounds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(["tensordb-data", "pymongo"]),
        "seconds": times,
        "verdicts": [
            {"what": "slowest search, s", "found": worst, "target": TARGET, "met": worst < TARGET},
            *(
                {"what": f"writing {what} with entries / without", "found": of, "target": WRITING, "met": of >= WRITING}
                for what, of in ratios.items()
            ),
        ],
    }
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "search.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entities", type=int, default=1_000_000, help="in each warehouse")
    parser.add_argument("--scene", choices=(*SCENES, "all"), default="all", help="which warehouse")


def timed(db: Any, text: str) -> float:
    begin = time.perf_counter()
    db.search(text)
    return time.perf_counter() - begin


def fill(db: Any, scene: str, entities: int) -> None:
    """Samples with tags, written as a writer writes them, without blobs, and their entries."""
    for i in range(DATASETS):
        with db.data.writer(f"set{i}") as writer:
            writer.add(label=0)
    data, console = db.database["data"], Console(stderr=True)
    for done, docs in enumerate(documents(db.project, scene, entities), 1):
        search_index(db.warehouse, "data").add_documents(docs)
        data.insert_many(docs, ordered=False)
        console.print(f"[dim]{scene}: {done * _CHUNK:,} of {entities:,}", end="\r")


def documents(project: str, scene: str, entities: int) -> Iterator[list[dict[str, Any]]]:
    chance = random.Random(0)
    weights = [1 / (1 + i) for i in range(WORDS)]
    names = [f"w{i}" for i in range(WORDS)]
    sets = [sorted(set(chance.choices(names, weights, k=TAGS))) for _ in range(SETS)]
    texts = captions(entities) if scene == "captions" else iter(())
    for low in range(0, entities, _CHUNK):
        numbers = range(low, min(entities, low + _CHUNK))
        yield [
            {
                "_id": ObjectId(), "dataset": f"set{i % DATASETS}", "label": 0,
                "tags": [*chance.choice(sets), f"e{i}"] if scene == "own" else chance.choice(sets),
                **({"caption": next(texts)} if scene == "captions" else {}),
                "_tdb": {"p": project, "s": i + DATASETS, "b": {}},
            }
            for i in numbers
        ]  # fmt: skip


def captions(number: int) -> Iterator[str]:
    chance, names = random.Random(1), [f"w{i}" for i in range(VOCABULARY)]
    weights = list(itertools.accumulate(1 / (1 + i) for i in range(VOCABULARY)))
    return (" ".join(chance.choices(names, cum_weights=weights, k=CAPTION)) for _ in range(number))


def writers(db: Any, what: str, samples: int, rounds: int) -> list[float]:
    """Rates with entries over rates without, a ratio for each round."""
    columns = {"image": np.zeros((samples, 64), np.uint8), "label": np.arange(samples), "split": ["train"] * samples}
    columns |= {"caption": list(captions(samples))} if what == "captions" else {}
    tags = [[f"t{i % 50}", "x"] for i in range(samples)]

    def write(name: str) -> float:
        begin = time.perf_counter()
        with db.data.writer(name) as writer:
            writer.add_many(**columns, tags=tags)
        return samples / (time.perf_counter() - begin)

    def without(name: str) -> float:
        nothing = mock.patch.object(WriteBatch, "words", lambda batch: lambda: ({}, {}))
        with nothing, mock.patch.object(SearchIndex, "add_groups"):
            return write(name)

    write("warm-up")
    ratios = []
    for i in range(max(3, rounds)):
        pair = [(write, f"with-{i}"), (without, f"without-{i}")]
        rates = {call: call(name) for call, name in (pair if i % 2 else reversed(pair))}
        ratios.append(rates[write] / rates[without])
    return ratios


def show(result: dict[str, Any]) -> None:
    """The table and the verdicts."""
    console = Console(width=120)
    table = Table(title=result["question"], title_justify="left")
    table.add_column("search")
    for scene in result["seconds"]:
        table.add_column(f"{scene}, ms", justify="right")
    for text in dict.fromkeys(text for of in result["seconds"].values() for text in of):
        row = [of.get(text) for of in result["seconds"].values()]
        table.add_row(text, *("" if of is None else f"{1e3 * statistics.median(of):,.1f}" for of in row))
    console.print(table)
    for verdict in result["verdicts"]:
        met = "reached" if verdict["met"] else "MISSED"
        console.print(f"{verdict['what']}: {verdict['found']:,.4g} (target {verdict['target']:g}: {met})")


if __name__ == "__main__":
    main()
