"""What the benchmarks share: contenders measured side by side in interleaved rounds, the report, the JSON result.

A contender is a function that opens an endless iterator of batches. Each round opens every contender once, in a rotated
order, draws its first batch off the clock (that is where workers start and buffers fill), and then counts samples for a
fixed time, pass boundaries included. The first rounds only warm up. Ratios are taken within a round, against the
contender named as the baseline, so that a slow minute of the machine hits both sides; the median over rounds counts.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")

RESULTS = Path(__file__).parents[1] / "results"

Batches = Iterator[int]
"""Yields the number of samples of each batch, once the batch is there in full."""


@dataclass
class Contender:
    """One way to deliver the batches of a question."""

    name: str
    open: Callable[[], contextlib.AbstractContextManager[Batches]]
    note: str = ""
    rates: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Target:
    """`contender` must reach `ratio` times `baseline`."""

    contender: str
    baseline: str
    ratio: float


def arguments(
    description: str,
    peers: Sequence[str],
    argv: Sequence[str] | None = None,
    own: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """The command line that all benchmarks have in common, and what `own` adds to it."""
    parser = argparse.ArgumentParser(
        description=description.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little data and short rounds: does it run at all")
    parser.add_argument("--peers", default="all", help=f"comma-separated, of: {', '.join(peers)}; or all, or none")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round for one contender")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON result")
    if own is not None:
        own(parser)
    options = parser.parse_args(argv)
    options.load = round(os.getloadavg()[0], 1)
    wanted = {"all": list(peers), "none": []}.get(options.peers, options.peers.split(","))
    if unknown := sorted(set(wanted) - set(peers)):
        parser.error(f"unknown peers {unknown}; known: {', '.join(peers)}")
    options.peers = [peer for peer in peers if peer in wanted]
    if options.quick:
        options.rounds, options.seconds = 1, 0.2
    return options


def peer(name: str, build: Callable[[], Sequence[Contender]]) -> list[Contender]:
    """The contenders of an optional peer; one that only carries the reason when it cannot be set up here."""
    try:
        return list(build())
    except ImportError as error:
        return [Contender(name, contextlib.nullcontext, failure=f"missing: {error}")]  # type: ignore[arg-type]
    except Exception as error:
        return [Contender(name, contextlib.nullcontext, failure=f"failed: {_line(error)}")]  # type: ignore[arg-type]


def looped(make: Callable[[], Any], size: Callable[[Any], int]) -> Callable[[], Any]:
    """`open` of a contender whose `make()` gives one pass of batches: pass after pass, without end."""

    @contextlib.contextmanager
    def open_passes() -> Iterator[Batches]:
        def batches() -> Batches:
            while True:
                for batch in make():
                    yield size(batch)

        iterator = batches()
        try:
            yield iterator
        finally:
            iterator.close()

    return open_passes


def race(contenders: Sequence[Contender], *, rounds: int, seconds: float, warmups: int = 1) -> None:
    """Fills in the rates of `contenders`; one that fails is reported and left out of further rounds."""
    console = Console(stderr=True)
    for round_ in range(-warmups, rounds):
        for contender in rotated(contenders, round_):
            if contender.failure:
                continue
            console.print(f"[dim]round {max(round_ + 1, 0)}/{rounds}  {contender.name:<40}", end="\r")
            gc.collect()
            try:
                rate = _round(contender, seconds)
            except Exception as error:
                contender.failure = f"failed: {_line(error)}"
                continue
            if round_ >= 0:
                contender.rates.append(rate)
    console.print(" " * 70, end="\r")


def rotated(items: Sequence[T], round_: int) -> list[T]:
    """The items, beginning with another one in each round."""
    turn = round_ % len(items)
    return [*items[turn:], *items[:turn]]


def _round(contender: Contender, seconds: float) -> float:
    with contender.open() as batches:
        next(batches)
        count = 0
        start = time.perf_counter()
        for size in batches:
            count += size
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return count / elapsed
    raise RuntimeError(f"the batches ended after {count} samples; a contender has no end")


def report(
    question: str,
    contenders: Sequence[Contender],
    targets: Sequence[Target],
    options: argparse.Namespace,
    context: Mapping[str, object],
    packages: Sequence[str],
    file: str,
) -> dict[str, Any]:
    """Prints the table and writes `<out>/<file>.json`."""
    by_name = {contender.name: contender for contender in contenders}
    verdicts = []
    for target in targets:
        ours, base = by_name[target.contender], by_name.get(target.baseline)
        if base is None or not (ours.rates and base.rates):
            continue
        ratio = statistics.median(a / b for a, b in zip(ours.rates, base.rates, strict=True))
        verdicts.append({"contender": ours.name, "baseline": base.name, "ratio": ratio, "target": target.ratio})
    result: dict[str, Any] = {
        "question": question,
        "quick": options.quick,
        "context": dict(context),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_before": options.load,
        "packages": versions(packages),
        "rates": {
            c.name: {"samples_per_s": c.rates, "note": c.note} if c.rates else {"missing": c.failure}
            for c in contenders
        },
        "verdicts": verdicts,
    }
    _print(result, contenders)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{file}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def _print(result: Mapping[str, Any], contenders: Sequence[Contender]) -> None:
    console = Console(width=120)
    table = Table(title=result["question"], title_justify="left")
    table.add_column("contender")
    table.add_column("samples/s", justify="right")
    table.add_column("spread", justify="right")
    table.add_column("remark")
    for contender in sorted(contenders, key=lambda c: -c.median if c.rates else 0.0):
        if contender.rates:
            spread = f"{min(contender.rates):,.0f} – {max(contender.rates):,.0f}"
            table.add_row(contender.name, f"{contender.median:,.0f}", spread, contender.note)
        else:
            table.add_row(contender.name, "–", "–", contender.failure)
    console.print(table)
    if result["load_before"] > 0.5:
        console.print(f"The machine was busy when this began (load {result['load_before']}): no figures to publish.")
    for verdict in result["verdicts"]:
        met = "reached" if verdict["ratio"] >= verdict["target"] else "MISSED"
        console.print(
            f"{verdict['contender']} is {verdict['ratio']:.2f} × {verdict['baseline']}"
            f" (target {verdict['target']:g}: {met})"
        )


@contextlib.contextmanager
def warehouse(folder: Path) -> Iterator[Any]:
    """A warehouse in `folder`; its server has ended, and the folder can be removed, after the block."""
    from tensordb_data import TensorDB
    from tensordb_data.embedded.control import down

    with TensorDB(folder / "warehouse") as db:
        yield db
    down(folder / "warehouse")


def allow_streaming() -> None:
    """Imports MosaicML Streaming without torchvision, of which no build fits every build of torch.

    It imports three of its names for classes that no benchmark uses.
    """
    import importlib
    import types

    importlib.import_module("transformers.feature_extraction_utils")  # looks for torchvision itself
    stand_ins = {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.datasets": types.SimpleNamespace(VisionDataset=object, CIFAR10=object),
        "torchvision.transforms": types.ModuleType("torchvision.transforms"),
        "torchvision.transforms.functional": types.SimpleNamespace(to_tensor=None),
    }
    missing: dict[str, Any] = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        importlib.import_module("streaming")
    finally:
        for name in missing:
            del sys.modules[name]


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "gpu": gpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each package, or "missing"."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def quiet(device: str = "cpu") -> None:
    """Keeps libraries' start-up chatter out of the report; to be called before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if device == "cpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]
