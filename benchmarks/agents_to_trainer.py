"""B7-pong: how do samples/s and the latency from insert to batch change with the number of agents that write?

The loop of TensorLayer's published Pong plot: agents play with the newest policy and write their experience into the
database; one trainer follows it, updates the policy and publishes it every 10 updates, and the agents pull it. Here an
agent is a process with a writer of its own (`live=True`). It sees a court of 42 × 42 pixels, chooses a move with a
small policy and is held to the pace of its game. The trainer follows in batches of 256 and learns by policy gradients;
the checkpointer publishes in the background. After each episode an agent asks for a newer policy.

Latency runs from `add` in an agent to the moment the trainer has the batch. Every sample is counted: none may be lost
or come twice. The published plot has 3,017 samples/s at 5 agents and 12,000 at 25, and is nearly flat there.

    python benchmarks/agents_to_trainer.py --agents 5,10,15,20,25
    python benchmarks/shared/plot.py benchmarks/results/agents_to_trainer.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from live import writers
from rich.console import Console
from rich.table import Table
from shared import harness

from tensordb_data import SaveOptions

PUBLISHED = {5: 3_017, 25: 12_000}
PACE = 640  # moves a second that the game of one agent allows; 5 agents reach the first published point
EPISODE = 400  # moves
BATCH = 256
EVERY = 10  # updates between two publications
COURT, MOVES = (42, 42), 6
_STUCK = 60.0


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv, own)
    harness.quiet()
    counts = [1, 2] if options.quick else [int(text) for text in options.agents.split(",")]
    rounds, seconds = (1, 0.5) if options.quick else (min(options.rounds, 1), max(options.seconds, 5.0))
    # Agents begin as forks of a process that has imported everything: 25 imports at once are not the question.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tensordb_data.samples.writer", "live"])
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        if not options.quick:
            play(db, "warm-up", counts[0], 1.0)
        for round_ in range(rounds):
            for count in counts:
                runs[count].append(play(db, f"pong-{count}-{round_}", count, seconds))
    result: dict[str, Any] = {
        "question": "B7-pong: samples a second from agents that play into one trainer that publishes its policy",
        "quick": options.quick,
        "context": {
            "sample": f"{COURT[0] * COURT[1]} bytes, move, reward",
            "batch": BATCH,
            "paced_to_each": PACE,
            "publish_every": EVERY,
            "published": PUBLISHED,
        },
        "rounds": rounds,
        "seconds": seconds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(["tensordb-data", "pymongo", "numpy"]),
        "rates": {
            f"TensorDB, {count} agents": {"samples_per_s": [run["samples_per_s"] for run in found]}
            for count, found in runs.items()
        },
        "agents": {str(count): found for count, found in runs.items()},
        "verdicts": verdicts(runs),
    }
    show(runs, result["verdicts"])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "agents_to_trainer.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", default="5,10,15,20,25", help="numbers of agents to measure, with commas between")


def play(db: Any, run: str, agents: int, seconds: float) -> dict[str, float]:
    """One point of the plot: `agents` play for `seconds`, and the trainer learns until it has seen all they wrote."""
    from tensordb_data.checkpoint.checkpointer import Checkpointer

    court, policy = np.zeros(COURT, np.uint8), np.zeros((COURT[0] * COURT[1], MOVES), np.float32)
    first = {"agent": 0, "number": 0, "version": 0, "at": 0.0}
    with db.data.writer(run, live=True) as writer:
        writer.add(court=court, move=0, reward=0.0, **{**first, "agent": -1})
    stream = db.data.find({"dataset": run}).stream(batch_size=BATCH, follow=True)
    batches = iter(stream)
    next(batches)
    seen: list[tuple[float, Mapping[str, Any]]] = []
    ages: list[int] = []
    written: dict[int, tuple[int, int, float]] = {}
    watchdog = threading.Timer(_STUCK + 4 * seconds, stream.close)  # a lost sample must not hang it
    watchdog.start()
    state = {"model": {"policy": policy}}
    before = _spent(db)
    calm = SaveOptions(signals=False)
    with (
        writers(agent, db, run, seconds, count=agents, method="forkserver") as (barrier, reports),
        closing(Checkpointer(db.warehouse, run, lambda _: state, every=EVERY, options=calm)) as publisher,
    ):
        barrier.wait()
        begin, missing = time.time(), None
        for updates, batch in enumerate(batches):
            now = time.time()
            seen.append((now, {name: batch[name] for name in ("agent", "number", "at", "reward")}))
            ages.append(updates - int(np.median(batch["version"])))
            learn(policy, batch)
            publisher.end_step(updates + 1, {})
            while not reports.empty():
                number, report = reports.get()
                written[number] = report
            if len(written) == agents and missing is None:
                missing = sum(count for count, *_ in written.values())
            if missing is not None and sum(len(part["agent"]) for _, part in seen) >= missing:
                break
        watchdog.cancel()
        stream.close()
        published, after = publisher.stats(), _spent(db)
    spent = {name: after[name] - before[name] for name in before}
    spent["agents_cpu_s"] = sum(seconds for *_, seconds in written.values())
    return (
        spent
        | summary(seen, written, begin)
        | {
            "published": published["durable"],
            "pulled_by_each": statistics.median(pulled for _, pulled, _ in written.values()),
            "policy_age_updates": statistics.median(ages),
        }
    )


def _spent(db: Any) -> dict[str, float]:
    """What this process and the server have spent so far, and the transactions that were committed and aborted."""
    status = db.database.client.admin.command("serverStatus")
    used, counts = status["extra_info"], status["transactions"]
    return {
        "trainer_cpu_s": time.process_time(),
        "server_cpu_s": (used["user_time_us"] + used["system_time_us"]) / 1e6,
        "committed": float(counts["totalCommitted"]),
        "aborted": float(counts["totalAborted"]),
    }


def learn(policy: Any, batch: Mapping[str, Any]) -> None:
    """One step of REINFORCE (Williams 1992): the chosen moves become likelier as far as they were rewarded."""
    x = batch["court"].reshape(len(batch["move"]), -1).astype(np.float32) / 255
    chances = np.exp(x @ policy)
    chances /= chances.sum(1, keepdims=True)
    chances[np.arange(len(x)), batch["move"]] -= 1
    policy -= 0.1 * x.T @ (chances * batch["reward"][:, None].astype(np.float32)) / len(x)


def agent(db: Any, run: str, seconds: float, number: int, barrier: Any, reports: Any) -> None:
    """Plays, writes what it saw and did, and after each episode asks for a newer policy."""
    dice = np.random.default_rng(number)
    policy, version, pulled, i = np.zeros((COURT[0] * COURT[1], MOVES), np.float32), 0, 0, 0
    newest = db.params.find({"run": run}, sort=[("step", -1)], limit=1)
    court = np.zeros(COURT, np.uint8)
    with db.data.writer(run, live=True) as writer:
        barrier.wait()
        begin, cpu = time.monotonic(), time.process_time()
        while (spent := time.monotonic() - begin) < seconds:
            if (early := i / PACE - spent) > 0.002:
                time.sleep(early)
            if i % EPISODE == number % EPISODE:  # not all at one moment
                for found in newest.head(1):
                    if found.step != version:
                        policy, version = found.load(framework="numpy")["policy"], found.step
                        pulled += 1
            row = dice.integers(COURT[0])
            court[:] = 0
            court[row, :] = 255
            move = int(np.argmax(court.reshape(-1) @ policy / 255 + dice.gumbel(size=MOVES)))
            reward = float(move == row * MOVES // COURT[0])
            writer.add(court=court, move=move, reward=reward, agent=number, number=i, version=version, at=time.time())
            i += 1
    reports.put((number, (i, pulled, time.process_time() - cpu)))
    db.close()


def summary(
    seen: Sequence[tuple[float, Mapping[str, Any]]], written: Mapping[int, tuple[int, int, float]], begin: float
) -> dict[str, float]:
    """The rate, the latencies, and what was lost or came twice."""
    latency = np.concatenate([now - part["at"] for now, part in seen])
    agents, numbers = (np.concatenate([part[name] for _, part in seen]) for name in ("agent", "number"))
    rewards = np.array([part["reward"].mean() for _, part in seen])
    tenth = max(1, len(rewards) // 10)
    pairs = np.unique(np.stack([agents, numbers]), axis=1).shape[1]
    return {
        "samples": len(latency),
        "samples_per_s": len(latency) / (seen[-1][0] - begin),
        "p50_s": float(np.quantile(latency, 0.5)),
        "p95_s": float(np.quantile(latency, 0.95)),
        "max_s": float(latency.max()),
        "lost": sum(count for count, *_ in written.values()) - pairs,
        "twice": len(latency) - pairs,
        "reward_first_tenth": float(rewards[:tenth].mean()),
        "reward_last_tenth": float(rewards[-tenth:].mean()),
    }


def verdicts(runs: Mapping[int, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """The rate at the published numbers of agents, and that nothing was lost or came twice."""
    found: list[dict[str, Any]] = []
    for count, target in PUBLISHED.items():
        if count in runs:
            rate = statistics.median(run["samples_per_s"] for run in runs[count])
            found.append({"what": f"{count} agents: samples/s", "found": rate, "target": target, "met": rate >= target})
    for key in ("lost", "twice"):
        total = sum(run[key] for each in runs.values() for run in each)
        found.append({"what": key, "found": total, "target": 0, "met": total == 0})
    return found


def show(runs: Mapping[int, Sequence[Mapping[str, float]]], found: Sequence[Mapping[str, Any]]) -> None:
    """The table and the verdicts."""
    console = Console(width=140)
    table = Table(title="B7-pong: agents that play, one trainer that follows", title_justify="left")
    columns = ("agents", "samples/s", "TensorLayer", "p50, ms", "p95, ms", "CPU µs: agents", "trainer", "server",
               "samples a commit", "aborted", "published", "pulled by each", "policy age", "reward")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right")
    for count, each in runs.items():
        value = {key: statistics.median(run[key] for run in each) for key in each[0]}
        table.add_row(
            str(count), f"{value['samples_per_s']:,.0f}", f"{PUBLISHED[count]:,}" if count in PUBLISHED else "",
            f"{1e3 * value['p50_s']:,.0f}", f"{1e3 * value['p95_s']:,.0f}",
            *(f"{1e6 * value[f'{who}_cpu_s'] / value['samples']:,.0f}" for who in ("agents", "trainer", "server")),
            f"{value['samples'] / value['committed']:,.0f}", f"{value['aborted']:,.0f}", f"{value['published']:,.0f}",
            f"{value['pulled_by_each']:,.0f}", f"{value['policy_age_updates']:,.0f} updates",
            f"{value['reward_first_tenth']:.2f} → {value['reward_last_tenth']:.2f}",
        )  # fmt: skip
    console.print(table)
    for verdict in found:
        met = "reached" if verdict["met"] else "MISSED"
        console.print(f"{verdict['what']}: {verdict['found']:,.6g} (published: {verdict['target']:,}: {met})")


if __name__ == "__main__":
    main()
