"""Kills of the commands `tensordb ingest` and `tensordb export`, as a user runs them; then the same command again.

    make soak-doors                                                     # 200 kills: 100 of each
    .venv/bin/python tests/long/kill_ingest.py --kills 12 --seed 7      # half of them of each

A command is killed (kill -9) at a moment of chance, up to three times, and then runs until it ends. Of four kills one
is at any time after its start, and the others once some part of the work is done, as the index or the folder tells, or
up to a fifth of a second later. The sources are a folder of images, Parquet with and without `--key`, an edited
Parquet that updates what is there, and tar files; folder and tar files in place, too. Exports are of each format, to a
new folder or over an earlier export. After each kill:

- no row is there twice, and each has its own value, or that from before the edit;
- an export is not there, or it is complete: the old one or the new one, as its manifest and its own reader say.

After the command has ended, all rows are there, each once; the command once more changes nothing; fsck finds nothing
once gc has run; the files of the source are as they were; and beside an export nothing is left.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tensordb_data import Image, Scalar, TensorDB
from tests.integration.export.samples import contents, manifest
from tests.integration.housekeeping.test_canary import content
from tests.long.soak import end_leases, main

COMMAND = str(Path(sys.executable).with_name("tensordb"))
IMAGES, ROWS, SAMPLES = 3000, 20_000, 400
FORMATS = ("parquet", "jsonl", "folder", "webdataset", "mds", "coco")


def picture(n: int) -> bytes:
    pixels = np.full((24, 24, 3), n % 256, np.uint8)
    pixels[0, 0] = (n >> 16 & 255, n >> 8 & 255, n & 255)
    return bytes(cv2.imencode(".png", pixels)[1])


# --- what goes in -----------------------------------------------------------------------------------------------------


def make_images(folder: Path) -> None:
    for n in range(IMAGES):
        path = folder / "abcd"[n % 4] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))


def make_tars(folder: Path) -> None:
    folder.mkdir(parents=True)
    for first in range(0, IMAGES, 500):
        with tarfile.open(folder / f"{first:06}.tar", "w") as tar:
            for n in range(first, first + 500):
                for suffix, data in (("png", picture(n)), ("json", json.dumps({"n": n}).encode())):
                    member = tarfile.TarInfo(f"{n:06}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def make_tables(folder: Path) -> None:
    _tables(folder, lambda n: f"text {n}")


def edit_tables(folder: Path) -> None:
    _tables(folder, lambda n: f"{'edited' if n % 2 else 'text'} {n}")


def _tables(folder: Path, text: Callable[[int], str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, ROWS, 2500):
        numbers = range(first, first + 2500)
        pq.write_table(pa.table({"n": numbers, "text": list(map(text, numbers))}), folder / f"{first:06}.parquet")


@dataclass(frozen=True)
class Door:
    """A kind of source: how its files are made, the options of the command, and what must be there in the end."""

    make: Callable[[Path], None]
    options: tuple[str, ...]
    expected: Mapping[int, Any]
    edit: Callable[[Path], None] | None = None
    """What is done to the files after a first ingest; then the second one is killed."""
    earlier: Mapping[int, Any] = field(default_factory=dict)

    def part(self, db: TensorDB, dataset: str) -> float:
        """Which part of the rows is there."""
        done: dict[str, Any] = (
            {"dataset": dataset} if self.edit is None else {"dataset": dataset, "text": {"$regex": "^e"}}
        )
        total = len(self.expected) if self.edit is None else sum(text[0] == "e" for text in self.expected.values())
        return db.database["data"].count_documents(done) / total

    def found(self, db: TensorDB, dataset: str) -> dict[int, Any]:
        """The value of each row.

        Raises:
            AssertionError: A row is there twice.
        """
        rows = db.data.find({"dataset": dataset})
        if not rows.count():
            return {}
        tabular = self.make is make_tables
        table = rows.to_arrow() if tabular else rows.to_arrow(blobs=["image"])
        numbers = table["n"].to_pylist() if "n" in table.column_names else [
            int(Path(path).stem) for path in table["path"].to_pylist()
        ]  # fmt: skip
        found = dict(zip(numbers, table["text" if tabular else "image"].to_pylist(), strict=True))
        assert len(found) == len(numbers), f"{len(numbers) - len(found)} rows are there twice"
        return found


PICTURES = {n: picture(n) for n in range(IMAGES)}
TEXTS = {n: f"text {n}" for n in range(ROWS)}
EDITED = {n: f"{'edited' if n % 2 else 'text'} {n}" for n in range(ROWS)}
TAR = ("--rename", "png=image", "--rename", "json.n=n")
DOORS = {
    "folder": Door(make_images, (), PICTURES),
    "parquet": Door(make_tables, (), TEXTS),
    "parquet with a key": Door(make_tables, ("--key", "n"), TEXTS),
    "edited parquet": Door(make_tables, ("--key", "n"), EDITED, edit_tables, TEXTS),
    "tar": Door(make_tars, TAR, PICTURES),
    "folder in place": Door(make_images, ("--in-place",), PICTURES),
    "tar in place": Door(make_tars, (*TAR, "--in-place"), PICTURES),
}


# --- the command that is killed ---------------------------------------------------------------------------------------


class Command:
    """One command line, killed at moments of its work, and run to its end."""

    def __init__(self, dice: random.Random, name: str, took: dict[str, float], *words: str | Path) -> None:
        self._dice, self._name, self._took = dice, name, took
        self._words = [COMMAND, *map(str, words)]

    def run(self) -> dict[str, Any]:
        """Until it ends, which must be well; returns what it has told."""
        began = time.monotonic()
        done = subprocess.run([*self._words, "--json"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{' '.join(self._words)}: {done.stdout}{done.stderr}"
        self._took.setdefault(self._name, time.monotonic() - began)
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def kill(self, done: Callable[[], float]) -> bool:
        """Kill it at some moment. Returns whether it was killed, rather than that it had ended.

        Args:
            done: Which part of its work is done, from 0 to 1.
        """
        idle, whole = self._took["nothing to do"], self._took[self._name]
        child = subprocess.Popen(self._words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if self._dice.random() < 0.25:
            wait = self._dice.uniform(0.6 * idle, max(whole, idle))
        else:
            part, wait = self._dice.uniform(done(), 1), self._dice.uniform(0, 0.2)
            while child.poll() is None and done() < part:
                time.sleep(0.002)
        try:
            child.wait(wait)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return True
        assert child.returncode == 0, f"{self._words} ended with status {child.returncode}"
        return False


def kill_ingests(folder: Path, kills: int, dice: random.Random, until: float) -> Counter[str]:
    """Returns how many kills met each kind of source."""
    done, took = Counter[str](), dict[str, float]()
    home, names = folder / "warehouse", list(DOORS)
    for number in range(10 * kills):
        if done.total() >= kills or time.time() > until:
            break
        name = min(dice.sample(names, len(names)), key=lambda each: done[each])
        door, source, dataset = DOORS[name], folder / name.replace(" ", "-"), f"d{number}"
        if not source.exists() or door.edit:
            door.make(source)
        words = ("ingest", source, "--db", home, "--dataset", dataset, *door.options)
        command, edited = Command(dice, name, took, *words), door.edit is not None
        if name not in took:  # how long it takes, in a dataset of its own
            for what in (name, "nothing to do"):
                Command(dice, what, took, *words[:4], "--dataset", f"first {name}", *door.options).run()
        if door.edit is not None:
            command.run()
            door.edit(source)
        before = content(source)
        for _ in range(dice.randint(1, 3)):
            with TensorDB(home) as db:
                killed = command.kill(lambda db=db, dataset=dataset, door=door: door.part(db, dataset))  # type: ignore[misc]
                done[name] += killed
                found = door.found(db, dataset)
            for n, value in found.items():
                assert value == door.expected[n] or (edited and value == door.earlier[n]), f"another value of {n}"
            assert not edited or len(found) == len(door.earlier), "rows are lost by an update"
            if not killed:
                break
        report = command.run()
        with TensorDB(home) as db:
            assert door.found(db, dataset) == door.expected, f"{name}: not all rows are there: {report}"
            again = command.run()
            assert (again["added"], again["updated"]) == (0, 0), again
            assert content(source) == before, "a file of the source was touched"
            _clean(db, dataset)
        _say(done, kills, f"ingest of {name}: {len(found):,} of {len(door.expected):,} rows after the last kill")
    return done


def _clean(db: TensorDB, dataset: str) -> None:
    """Collect what the dead have left, look for faults, and drop the dataset."""
    end_leases(db)
    db.gc(grace=0)
    findings = db.fsck().findings
    assert not findings, findings
    db.data.drop(dataset)
    db.gc(grace=0)


def _say(done: Counter[str], kills: int, what: str) -> None:
    print(f"{done.total()} of {kills}: {what}", flush=True)


# --- what comes out ---------------------------------------------------------------------------------------------------


def fill(db: TensorDB) -> None:
    schema = {"image": Image(), "n": Scalar("int"), "class": Scalar("str"), "split": Scalar("str"),
              "annotations": Scalar("json")}  # fmt: skip
    with db.data.writer("out", schema=schema) as writer:
        for n in range(SAMPLES):
            box = {"bbox": [0.0, 0.0, 1.0 + n, 2.0], "category_id": n % 3, "class": f"c{n % 3}", "area": 2.0 + 2 * n}
            split = "test" if n % 5 == 0 else "train"
            writer.add(image=picture(n), n=n, annotations=[box], split=split, **{"class": "abc"[n % 3]})


def written(folder: Path) -> int:
    """Bytes of the blobs and tables that an export has written so far."""
    nbytes = 0
    for place, _, names in os.walk(folder / "files"):  # which passes over folders that are gone by now
        for name in names:
            with contextlib.suppress(OSError):
                nbytes += os.stat(os.path.join(place, name)).st_size
    return nbytes


def exported(out: Path, format: str) -> dict[int, bytes]:
    """The images of an export by number, when it is complete."""
    if format != "coco":
        rows = [(row["n"], row["image"]) for row in contents(out, format)]
    else:
        manifest(out)
        rows = list(_coco(out))
    assert len(dict(rows)) == len(rows), "a sample is there twice"
    return dict(rows)


def _coco(out: Path) -> Iterator[tuple[int, bytes]]:
    for path in sorted((out / "annotations").iterdir()):
        found = json.loads(path.read_text())
        numbers = {each["image_id"]: round(each["bbox"][2]) - 1 for each in found["annotations"]}
        for image in found["images"]:
            (place,) = (out / "images").rglob(Path(image["file_name"]).name)
            yield numbers[image["id"]], place.read_bytes()


def kill_exports(folder: Path, kills: int, dice: random.Random, until: float) -> Counter[str]:
    """Returns how many kills met each format."""
    done, took, size = Counter[str](), dict[str, float](), dict[str, int]()
    home, place = folder / "warehouse", folder / "exports"
    with TensorDB(home) as db:
        fill(db)
    new, old = ({n: picture(n) for n in range(low, SAMPLES)} for low in (0, SAMPLES - 20))
    for number in range(10 * kills):
        if done.total() >= kills or time.time() > until:
            break
        place.mkdir()
        format, over = min(dice.sample(FORMATS, len(FORMATS)), key=lambda each: done[each]), number % 2 == 1
        fields = "image,n,class,split" + (",annotations" if format == "coco" else "")
        options = ("--db", home, "--dataset", "out", "--format", format, "--fields", fields, "--shard-bytes", "20kB")

        def command(out: str, name: str, *more: str, options: tuple[Any, ...] = options) -> Command:
            return Command(dice, name, took, "export", place / out, *more, *options)

        if format not in took:
            command("first", "nothing to do", '{"n": 0}').run()
            shutil.rmtree(place / "first")
            size[format] = command("first", format).run()["bytes"]
            shutil.rmtree(place / "first")
        if over:
            command("o", "old", json.dumps({"n": {"$gte": SAMPLES - 20}})).run()
        asked = command("o", format, *(["--overwrite"] if over else []))
        for _ in range(dice.randint(1, 3)):
            killed = asked.kill(lambda format=format: written(place / "o.partial") / size[format])  # type: ignore[misc]
            done[format] += killed
            if (place / "o").exists():
                assert exported(place / "o", format) in ([old, new] if over else [new]), "neither the old nor the new"
            else:
                assert not over, "the earlier export is gone"
            if not killed or ((place / "o").exists() and not over):
                break
        complete = (place / "o").exists() and not over and not (place / "o.partial").exists()
        resumed = 0 if complete else asked.run()["resumed"]
        assert exported(place / "o", format) == new
        assert (left := sorted(path.name for path in place.iterdir())) == ["o"], f"left: {left}"
        shutil.rmtree(place)
        _say(done, kills, f"export of {format}{' over another' if over else ''}: {resumed} samples were written before")
    return done


def soak(folder: Path, kills: int, seed: int, until: float) -> Counter[str]:
    """Returns how many kills fell into each kind of source and format."""
    dice = random.Random(seed)
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")  # where an ingest in place notes its root
    ingests = kill_ingests(folder, kills - kills // 2, dice, until)
    return ingests + kill_exports(folder, kills // 2, dice, until)


if __name__ == "__main__":
    main(__doc__, soak, "all rows once, no half file")
