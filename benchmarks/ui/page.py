"""B18: how fast is the page of a warehouse, with a million samples, thumbnails, and a thousand runs, ten of them long?

The app answers in this process, without a browser and a network: what is measured is the server's own time. *First* is
the first request to an app that was made just now, *again* is the median of those that follow.

    python benchmarks/ui/page.py --samples 1000000 --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import harness

from tensordb_data.samples.pictures.encode import png
from tensordb_data.ui import make_app

RUNS, BLOCK, TOKEN = 10, 100, "a-token-of-a-benchmark"
_CHUNK = 50_000
_FEW = 10
TARGETS = {
    ("dataset page", "again"): 0.1, ("facets", "again"): 0.3, ("tiles of 100", "again"): 0.3,
    ("thumbnails of 100", "first"): 0.3, ("thumbnails of 100", "again"): 0.03, ("curves, sampled", "first"): 0.3,
    ("curves, what is new", "again"): 0.02, ("table of runs", "again"): 0.3,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv, own)
    samples, pictures, rows, rounds = (
        (2_000, 100, 300, 1) if options.quick else (options.samples, options.pictures, options.rows, options.rounds)
    )
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        fill(db, samples, pictures, options.side, rows)
        others = 20 if options.quick else options.others
        fill_others(db, others)
        times = {name: asked(db, ask, rounds) for name, ask in questions(db).items()}
    result: dict[str, Any] = {
        "question": f"B18: the page, with {samples:,} samples, {RUNS} runs of {rows:,} rows, {others:,} others",
        "quick": options.quick,
        "context": {"samples": samples, "pictures": pictures, "side": options.side, "runs": RUNS, "rows": rows,
                    "others": others},
        "rounds": rounds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(["tensordb-data", "pymongo", "starlette", "opencv-python-headless"]),
        "seconds": times,
        "verdicts": [
            {"what": f"{name}, {when}, s", "found": times[name][when], "target": target,
             "met": times[name][when] <= target}
            for (name, when), target in TARGETS.items()
        ],
    }  # fmt: skip
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "page.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=1_000_000, help="of the large dataset, without blobs")
    parser.add_argument("--pictures", type=int, default=2_000, help="samples with an image")
    parser.add_argument("--side", type=int, default=512, help="pixels of a side of an image")
    parser.add_argument("--rows", type=int, default=1_000_000, help=f"of each of the {RUNS} runs")
    parser.add_argument("--others", type=int, default=990, help=f"further runs, of {_FEW} rows each")


def fill_others(db: Any, count: int) -> None:
    """Runs as a sweep leaves them behind."""
    for number in range(count):
        with db.logs.run(f"other-{number}", config={"lr": 10.0 ** -(number % 5), "seed": number}) as log:
            for step in range(_FEW):
                log.write(step, loss=1 / (1 + step), acc=0.5)


def fill(db: Any, samples: int, pictures: int, side: int, rows: int) -> None:
    rng = np.random.default_rng(18)
    with db.data.writer("large") as writer:
        for start in range(0, samples, _CHUNK):
            n = min(_CHUNK, samples - start)
            writer.add_many(
                label=rng.integers(0, 10, n), conf=rng.random(n), city=rng.choice(["Ulm", "Bonn", "Kiel"], n).tolist(),
                number=np.arange(start, start + n),
            )  # fmt: skip
    coarse = rng.integers(0, 255, (16, side // 16, side // 16, 3)).astype(np.uint8)
    images = [png(np.kron(one, np.ones((16, 16, 1), np.uint8))) for one in coarse]
    with db.data.writer("pictures") as writer:
        for number in range(pictures):
            writer.add(image=images[number % len(images)], label=number % 10)
    for number in range(RUNS):
        with db.logs.run(f"run-{number}") as log:
            for step in range(rows):
                log.write(step, loss=1 / (1 + step), acc=0.5)


def questions(db: Any) -> dict[str, str]:
    """An address for each question."""
    ids = "".join(f"&id={sample.id}" for sample in db.data.find({"dataset": "pictures"}, limit=BLOCK, fields=["label"]))
    runs = "".join(f"&run=run-{number}" for number in range(RUNS))
    newest = db.logs.find(sort=[("_id", -1)], limit=1).first().id
    return {
        "first page": "/", "dataset page": "/data?dataset=large", "facets": "/facets?dataset=large",
        "tiles of 100": "/tiles?dataset=large", "thumbnails of 100": f"/thumbs?field=image&dataset=pictures{ids}",
        "table of runs": "/runs", "curves, sampled": f"/sampled?metric=loss{runs}",
        "curves, all rows": f"/curves?metric=loss{runs}",
        "curves, what is new": f"/fresh?metric=loss&after={newest}{runs}", "storage": "/storage",
    }  # fmt: skip


def asked(db: Any, address: str, rounds: int) -> dict[str, float]:
    """Seconds of the first request to a new app, and the median of those that follow."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    client = TestClient(make_app(db, token=TOKEN), base_url="http://127.0.0.1", headers=bearer)
    with client:
        client.get("/static/main.js")  # the thread that answers is there
        first = timed(lambda: client.get(address))
        return {"first": first, "again": statistics.median(timed(lambda: client.get(address)) for _ in range(rounds))}


def timed(ask: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    answer = ask()
    took = time.perf_counter() - begin
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.url}: {answer.status_code}: {answer.text[:300]}")
    return took


def show(result: dict[str, Any]) -> None:
    """The table and the verdicts."""
    console = Console(width=120)
    table = Table(title=result["question"], title_justify="left")
    for column in ("request", "first, ms", "again, ms"):
        table.add_column(column, justify="left" if column == "request" else "right")
    for name, of in result["seconds"].items():
        table.add_row(name, f"{1e3 * of['first']:,.1f}", f"{1e3 * of['again']:,.1f}")
    console.print(table)
    for verdict in result["verdicts"]:
        met = "reached" if verdict["met"] else "MISSED"
        console.print(f"{verdict['what']}: {verdict['found']:,.4g} (target {verdict['target']:g}: {met})")


if __name__ == "__main__":
    main()
