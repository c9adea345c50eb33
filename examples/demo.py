"""The whole story in a few minutes: images in, a query, a training run that is killed and resumed, Keras, what is kept.

python examples/demo.py FOLDER
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table

from tensordb_data import TensorDB
from tensordb_data.embedded.control import down

HERE = Path(__file__).parent
STEPS, EVERY, KILL_AT = 600, 50, 323
console = Console(width=100, highlight=False)


def main(folder: Path) -> None:
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    warehouse = folder / "warehouse"
    if warehouse.exists():
        down(warehouse)
        shutil.rmtree(warehouse)

    with chapter("Images in"):
        pictures = write_pictures(folder / "digits")
        say(f"{pictures:,} scanned digits of scikit-learn lie as PNG files in {folder}/digits/train/0 … valid/9")
        run("tensordb", "ingest", str(folder / "digits"), "--dataset", "digits", "--db", str(warehouse))
        db = TensorDB(warehouse)
        say(f"a real MongoDB serves the folder {warehouse} while somebody uses it")

    with chapter("Everything is a query"):
        code(
            """
            digits  = db.data.find({"dataset": "digits"})
            train   = digits & {"split": "train"}                         # the folder that a picture was in
            valid   = digits & {"split": "valid"}
            """
        )
        digits = db.data.find({"dataset": "digits"})
        train, valid = digits & {"split": "train"}, digits & {"split": "valid"}
        say(f"train {train.count():,}, valid {valid.count():,}, classes {sorted(valid.distinct('label'))}")
        threes = valid & {"label": 3}
        say(f"held-out threes: {threes.count()}; the first:")
        print_picture(threes.first()["image"])

    with chapter(f"PyTorch, saving every {EVERY} steps, killed with SIGKILL on purpose"):
        first = watch_training([*script("train_torch.py"), str(warehouse), str(STEPS)], kill_at=KILL_AT)
        last = max(first.losses)
        say(f"step {last}: loss {first.losses[last]:.4f}", f"[bold red]kill -9[/] after {first.seconds:.1f} s")
        second = watch_training([*script("train_torch.py"), str(warehouse), str(STEPS)])
        say(f"the same command again: [bold green]resumed at step {second.start}[/], on to step {max(second.losses)}")
        again = [step for step in first.losses if step in second.losses]
        same = sum(first.losses[step] == second.losses[step] for step in again)
        say(f"steps {again[0]} to {again[-1]} ran twice: {same} of {len(again)} losses are equal to the last bit")

    with chapter("Keras on the same samples"):
        keras = watch_training([*script("train_keras.py"), str(warehouse), "12"])
        say(f"model.fit(query_dataset(stream).map(…), callbacks=[StepCheckpoint(…)]) ran {keras.seconds:.1f} s")

    with chapter("What was kept, best first"):
        code('db.params.find({"val_acc": {"$gte": 0.9}}, sort=[("val_acc", -1)])')
        table = Table("run", "step", "validation accuracy", "tensors", box=None, padding=(0, 3, 0, 2))
        saved = db.params.find({"val_acc": {"$gte": 0.9}}, sort=[("val_acc", -1)]).all()
        for one in saved[:10]:
            table.add_row(one.run, str(one.step), f"{one['val_acc']:.4f}", f"{one.nbytes / 1e6:.1f} MB")
        console.print(table)
        best = saved[0]["val_acc"]
        curves = plot(db, folder / "losses.png", killed=last, resumed=second.start)
        say(f"{len(saved)} sets in all; both loss curves, from db.logs: [bold]{curves}[/]")
    db.close()
    down(warehouse)
    console.print(Rule())
    console.print(f"  best validation accuracy [bold]{best:.4f}[/], everything in {time.perf_counter() - began:.0f} s")
    look = f".venv/bin/tensordb find params --sort=-val_acc --fields run,step,val_acc --db {warehouse}"
    console.print(f"  look around: [bold]{look}[/]\n", soft_wrap=True)
    if best < 0.97:
        sys.exit(f"expected a validation accuracy of at least 0.97, found {best:.4f}")


@contextlib.contextmanager
def chapter(title: str) -> Iterator[None]:
    console.print(Rule(f"[bold]{title}", align="left"))
    began = time.perf_counter()
    yield
    console.print(f"  [dim]{time.perf_counter() - began:.1f} s[/]\n")


def say(*lines: str) -> None:
    for line in lines:
        console.print(f"  {line}")


def code(text: str) -> None:
    lines = text.strip("\n").splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    body = "\n".join("  " + line[indent:] for line in lines if line.strip())
    console.print(Syntax(body, "python", theme="ansi_dark", background_color="default"))


def write_pictures(folder: Path) -> int:
    """The digits as files, a folder for each split and class, as they would come from anywhere."""
    import cv2
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("train" if number % 5 else "valid") / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.round(image * 255 / 16).astype(np.uint8))
    return len(digits.target)


def print_picture(image: np.ndarray[Any, Any]) -> None:
    for row in image:
        console.print("    " + "".join(" ░▒▓█"[int(value) * 4 // 255] * 2 for value in row))


def script(name: str) -> list[str]:
    return [sys.executable, str(HERE / name)]


def run(command: str, *arguments: str) -> None:
    console.print(f"  [dim]$[/] {command} {' '.join(arguments)}")
    done = subprocess.run([str(Path(sys.executable).with_name(command)), *arguments], stdout=subprocess.PIPE, text=True)
    say(*done.stdout.splitlines())
    if done.returncode:
        sys.exit(done.returncode)


class Training:
    """What a training process has printed."""

    def __init__(self) -> None:
        self.start = 0
        self.losses: dict[int, float] = {}
        self.seconds = 0.0


def watch_training(command: list[str], kill_at: int | None = None) -> Training:
    """Runs a training script to its end, or kills it without warning at a step."""
    seen, began = Training(), time.perf_counter()
    log = Path(command[2]).with_name("training.log")
    with (
        console.status("starting") as status,
        open(log, "a") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            status.update(line.strip())
            words = line.split()
            if words[:1] == ["start"]:
                seen.start = int(words[1])
            elif words[2:3] == ["loss"]:
                seen.losses[int(words[1])] = float(words[3])
                if int(words[1]) == kill_at:
                    process.kill()
    seen.seconds = time.perf_counter() - began
    if process.returncode and kill_at is None:
        sys.exit(f"{command[1]} ended with status {process.returncode}; the end of {log}:\n{log.read_text()[-3000:]}")
    return seen


def plot(db: TensorDB, path: Path, killed: int, resumed: int) -> Path:
    """Both loss curves, from the logs that the two runs wrote."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for run, color in (("torch", "tab:blue"), ("keras", "tab:orange")):
        rows = {row.step: row["loss"] for row in db.logs.find({"run": run, "kind": "train"})}
        steps = sorted(rows)
        smooth = np.convolve([rows[step] for step in steps], np.ones(9) / 9, mode="valid")
        axes.semilogy(steps, [rows[step] for step in steps], color=color, alpha=0.25, linewidth=0.8)
        axes.semilogy(steps[4:-4], smooth, color=color, label=run)
    axes.axvline(resumed, color="tab:green", linestyle="--", linewidth=1, label=f"torch resumed at {resumed}")
    axes.axvline(killed, color="tab:red", linestyle="--", linewidth=1, label=f"torch killed at {killed}")
    axes.set(xlabel="step", ylabel="training loss", title="Digits, from one query")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
