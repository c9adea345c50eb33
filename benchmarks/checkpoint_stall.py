"""B9: how long does training wait for a save, how much slower is the whole run, and how fast does it come back?

A plain loop over an MLP of 10M and of 100M fp32 parameters; each step changes every parameter. A round opens each
contender, lets it make one save off the clock, and then times a window of N steps that begins with a save, so that
whatever goes on in the background falls into the window. The stall is the time from the call that saves to its return,
beside a warm copy of the parameters into memory that was used before; the slowdown is the time of the window beside
that of one without saves, in the same round. Ours is durable (fsync) and in a queryable warehouse; the peers write
files without fsync.

Then: the bytes that a second save stores when 90% of the tensors have not changed, and a restore beside reading the
same bytes with as many threads.

    python benchmarks/checkpoint_stall.py --sizes 100 --every 10,50 --peers torch.save,dcp
    python benchmarks/shared/plot.py benchmarks/results/checkpoint_stall.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared import harness
from shared.checkpoint_peers import PEERS, Calls, peer

from tensordb_data import SaveOptions

LAYERS = 25
BATCH = {"cpu": 8, "cuda": 4_096}  # a step on an H100 takes some 40 ms with 100M parameters
PIECE = 4 << 20
PACKAGES = ["tensordb-data", "torch", "safetensors", "orbax-checkpoint", "xxhash", "numpy"]
NOTHING, MEMCPY, OURS = "no saves", "memcpy (yardstick)", "TensorDB"

@dataclass
class Saver:
    """One way to save: `open(model, every)` gives what to call after a step, and what waits until all is written."""

    name: str
    open: Callable[[Any, int], contextlib.AbstractContextManager[Calls]]
    failure: str = ""
    stalls: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    loops: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = arguments(argv)
    harness.quiet(options.device)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no CUDA device here.")
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", dir=options.folder) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        for millions in options.sizes:
            for every in options.every:
                results.append(stalls(db, Path(folder), millions, every, options))
            results[-1]["frozen"] = frozen(db, millions, options.device)
            results[-1]["restore"] = restore(db, millions, options.rounds, options.device)
            summary = results[-1]
            print(
                f"frozen 90%: {summary['frozen']:.3f} of the bytes (target 0.12); "
                f"restore: {summary['restore']['ratio_alone']:.2f} × reading the bytes with one thread, "
                f"{summary['restore']['ratio']:.2f} × with all of them (target 1.2)"
            )
            forget(db)
    result = {
        "question": f"B9 saves: what training waits for ({options.device})",
        "quick": options.quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "packages": harness.versions(PACKAGES),
        "results": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("checkpoint_stall.json" if options.device == "cpu" else "checkpoint_stall_gpu.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model and one short round: does it run at all")
    parser.add_argument("--sizes", default="10,100", help="millions of parameters")
    parser.add_argument("--every", default="10,50", help="steps between saves")
    parser.add_argument("--peers", default=",".join(PEERS), help="of: " + ", ".join(PEERS) + "; or none")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where the model is")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the temporary folder if not given")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the JSON result")
    options = parser.parse_args(argv)
    options.sizes = [float(size) for size in options.sizes.split(",")]
    options.every = [int(every) for every in options.every.split(",")]
    peers = list(PEERS)[: None if options.device == "cpu" else 3]  # the others would need a GPU build of their own
    options.peers = [peer for peer in peers if peer in options.peers.split(",")]
    if options.quick:
        options.sizes, options.every, options.rounds = [0.2], [5], 1
    return options


def network(millions: float, device: str) -> Any:
    import torch

    torch.manual_seed(0)
    width = round((millions * 1e6 / LAYERS) ** 0.5)
    return torch.nn.Sequential(*[torch.nn.Linear(width, width, bias=False) for _ in range(LAYERS)]).to(device)


def settle() -> None:
    """On a GPU: waits for what the loop has queued, as the next step there would; copies beside it go on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


def stalls(db: Any, folder: Path, millions: float, every: int, options: argparse.Namespace) -> dict[str, Any]:
    model = network(millions, options.device)
    savers = [Saver(NOTHING, nothing), Saver(MEMCPY, memcpy), Saver(OURS, ours(db))]
    savers += [Saver(name, peer(name, folder / name)) for name in options.peers]
    console = Console(stderr=True)
    for round_ in range(options.rounds):
        turn = round_ % len(savers)
        measured: dict[str, tuple[list[float], float, float]] = {}
        for saver in [*savers[turn:], *savers[:turn]]:
            console.print(f"[dim]{millions:g}M every {every}, round {round_ + 1}: {saver.name:<40}", end="\r")
            if saver.failure:
                continue
            try:
                measured[saver.name] = run(saver, model, every)
            except ImportError as error:
                saver.failure = f"missing: {error}"
            except Exception as error:
                saver.failure = f"failed: {type(error).__name__}: {error}"[:160]
            forget(db)
        collect(savers, measured)
    console.print(" " * 90, end="\r")
    return report(savers, millions, every, options)


def collect(savers: Sequence[Saver], measured: dict[str, tuple[list[float], float, float]]) -> None:
    copy = statistics.median(measured[MEMCPY][0])
    for saver in savers:
        if saver.name not in measured:
            continue
        stall, loop, rest = measured[saver.name]
        if stall:
            saver.stalls.extend(stall)
            saver.ratios.append(statistics.median(stall) / copy)
        saver.loops.append(loop / measured[NOTHING][1])
        saver.rest.append(rest)


def run(saver: Saver, model: Any, every: int) -> tuple[list[float], float, float]:
    """The stall of a save, seconds of the steps of its window, seconds until all was written after them."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    device = model[0].weight.device
    data = torch.randn(BATCH[device.type], model[0].in_features, device=device)

    def train() -> None:
        model(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # else most of a step is the kernel giving zeroed pages for gradients

    with saver.open(model, every) as (save, drain):
        train()
        calls = range(1, every + 1) if saver.name == OURS else [every]
        for number in calls:  # a save off the clock, which makes the buffers
            save(number)
        drain()
        for number in range(every + 1, 2 * every) if saver.name == OURS else ():
            save(number)  # none of these is due
        train()
        settle()
        began = time.perf_counter()
        for number in range(2 * every, 3 * every):
            train()
            settle()
            before = time.perf_counter()
            if number == 2 * every:
                save(number)
                settle()
                stall = time.perf_counter() - before
            elif saver.name == OURS:
                save(number)  # its step() is called at every step, and what that costs is in the loop's time
        settle()
        loop = time.perf_counter() - began
        drain()
        rest = time.perf_counter() - began - loop
    return ([] if saver.name == NOTHING else [stall]), loop, rest


@contextlib.contextmanager
def nothing(model: Any, every: int) -> Iterator[Calls]:
    yield lambda number: None, lambda: None


@contextlib.contextmanager
def memcpy(model: Any, every: int) -> Iterator[Calls]:
    import torch

    pin = torch.cuda.is_available()
    targets = [torch.zeros_like(value, device="cpu", pin_memory=pin) for value in model.state_dict().values()]

    def copy(number: int) -> None:
        for target, value in zip(targets, model.state_dict().values(), strict=True):
            target.copy_(value, non_blocking=True)

    yield copy, lambda: None


def ours(db: Any) -> Callable[[Any, int], Any]:
    @contextlib.contextmanager
    def open_(model: Any, every: int) -> Iterator[Calls]:
        from tensordb_data.torch import StepCheckpointer

        with StepCheckpointer(db, run="bench", model=model, every=every, options=SaveOptions(signals=False)) as ckpt:
            yield lambda number: ckpt.step(), ckpt.wait

    return open_


def frozen(db: Any, millions: float, device: str) -> float:
    """The part of its bytes that a second save stores when 90% of the tensors are as they were."""
    import torch

    from tensordb_data.torch import StepCheckpointer

    forget(db)  # otherwise the first save finds its tensors stored
    model = network(millions, device)
    with StepCheckpointer(db, run="frozen", model=model, every=1, options=SaveOptions(signals=False)) as ckpt:
        ckpt.step()
        ckpt.wait()
        first = ckpt.stats()["bytes_stored"]
        with torch.no_grad():
            for layer in model[: round(LAYERS * 0.1)]:
                layer.weight.add_(1.0)
        ckpt.step()
        ckpt.wait()
        return float((ckpt.stats()["bytes_stored"] - first) / first)


def restore(db: Any, millions: float, rounds: int, device: str) -> dict[str, Any]:
    """Seconds to load a model from a set, beside reading the bytes of its object into fresh memory."""
    forget(db)  # otherwise the tensors lie in the object of another set already
    model = network(millions, device)
    id = db.params.save(model.state_dict(), run="restore")
    store = db.warehouse.blobs.store()
    paths = [store.local_path(key) for key, _ in store.list("params/") if str(id) in key]
    found, loads, reads, singles = db.params.find({"_id": id}).first(), [], [], []
    readers, reader = ThreadPoolExecutor(os.cpu_count()), ThreadPoolExecutor(1)
    for _ in range(rounds + 1):
        began = time.perf_counter()
        found.load_into(model)
        settle()
        loads.append(time.perf_counter() - began)
        began = time.perf_counter()
        read(paths, readers)
        reads.append(time.perf_counter() - began)
        began = time.perf_counter()
        read(paths, reader)
        singles.append(time.perf_counter() - began)
    for pool in (readers, reader):
        pool.shutdown()
    ratios = [load / bare for load, bare in zip(loads[1:], reads[1:], strict=True)]
    alone = [load / one for load, one in zip(loads[1:], singles[1:], strict=True)]
    return {
        "load_s": loads[1:], "read_s": reads[1:], "read_alone_s": singles[1:],
        "ratio": statistics.median(ratios), "ratio_alone": statistics.median(alone), "target": 1.2,
    }  # fmt: skip


def read(paths: Sequence[Path], readers: ThreadPoolExecutor) -> None:
    """All bytes of some files into fresh memory, piece by piece, by all threads."""
    memory = [np.empty(path.stat().st_size, np.uint8) for path in paths]
    pieces = [(number, at) for number, held in enumerate(memory) for at in range(0, len(held), PIECE)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb", buffering=0)).fileno() for path in paths]
        list(readers.map(lambda p: os.preadv(files[p[0]], [memory[p[0]][p[1] : p[1] + PIECE].data], p[1]), pieces))


def forget(db: Any) -> None:
    """Makes room on the disk. Nothing else uses this warehouse."""
    store = db.warehouse.blobs.store()
    for key, _ in list(store.list("params/")):
        store.delete(key)
    for name in ("params", "tensors", "logs"):
        db.database[name].delete_many({})


def report(savers: Sequence[Saver], millions: float, every: int, options: argparse.Namespace) -> dict[str, Any]:
    console = Console(width=120)
    table = Table(title=f"{millions:g}M parameters, a save every {every} steps", title_justify="left")
    for column in ("saver", "stall, ms", "spread", "× memcpy", "loop", "spread", "written after, s"):
        table.add_column(column, justify="left" if column == "saver" else "right")
    found: dict[str, Any] = {}
    for saver in savers:
        if saver.failure or not saver.loops:
            console.print(f"{saver.name}: {saver.failure}")
            found[saver.name] = {"missing": saver.failure}
            continue
        slower, rest = statistics.median(saver.loops) - 1, statistics.median(saver.rest)
        spread = f"{min(saver.loops) - 1:+.1%} – {max(saver.loops) - 1:+.1%}"
        found[saver.name] = {"slowdown": [loop - 1 for loop in saver.loops], "written_after_s": saver.rest}
        if saver.stalls:
            ms = [1e3 * stall for stall in saver.stalls]
            found[saver.name] |= {"stall_ms": ms, "ratios": saver.ratios, "ratio": statistics.median(saver.ratios)}
            table.add_row(
                saver.name, f"{statistics.median(ms):,.1f}", f"{min(ms):,.1f} – {max(ms):,.1f}",
                f"{statistics.median(saver.ratios):.2f}", f"{slower:+.1%}", spread, f"{rest:.2f}",
            )  # fmt: skip
        else:
            table.add_row(saver.name, "–", "–", "–", f"{slower:+.1%}", spread, "–")
    console.print(table)
    return {"parameters": int(millions * 1e6), "every": every, "rounds": options.rounds, "savers": found}


if __name__ == "__main__":
    main()
