"""The same source again: what is known, what has changed, what is gone, and what was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tensordb_data import IngestError, QueryError, SchemaError, TensorDB
from tensordb_data.ingest import Checks, Columns, Rows
from tensordb_data.ingest.engine.format1 import old_ids, old_key
from tensordb_data.ingest.places import Files
from tensordb_data.warehouse.identity import Identities, row_key
from tests import warm


def counts(report: Any) -> tuple[int, int, int, int]:
    assert report.failed == []
    return report.added, report.updated, report.unchanged, report.missing


def write(path: Path, *rows: str, head: str = "id,name,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((4, 4, 3), value, np.uint8))
    return path


def test_a_row_of_a_table_is_known_by_its_content(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", *(f"{i},n{i},0" for i in range(100)))
    assert counts(db.data.ingest(file, "t")) == (100, 0, 0, 0)
    write(file, "1000,new,0", *(f"{i},n{i},0" for i in range(100)))
    assert counts(db.data.ingest(file, "t")) == (1, 0, 100, 0)
    file = file.rename(tmp_path / "renamed.csv")
    assert counts(db.data.ingest(file, "t")) == (0, 0, 101, 0)
    half = [f"{i},n{i},0" for i in reversed(range(100))]
    write(tmp_path / "parts/0.csv", *half[:50])
    write(tmp_path / "parts/1.csv", *half[50:], "1000,new,0")
    assert counts(db.data.ingest(tmp_path / "parts", "t")) == (0, 0, 101, 0)
    write(tmp_path / "parts/1.csv", *half[50:], "1000,changed,0")
    report = db.data.ingest(tmp_path / "parts", "t")
    assert counts(report) == (1, 0, 100, 1)


def test_many_edited_rows_without_a_key_are_told(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", *(f"{i},n{i},0" for i in range(10)))
    assert db.data.ingest(file, "t").notes == []
    report = db.data.ingest(write(file, *(f"{i},n{i},{i % 2}" for i in range(10))), "t")
    assert counts(report) == (5, 0, 5, 5) and "key= names the column" in report.notes[0]


def test_equal_rows_of_two_files_are_both_in(db: TensorDB, tmp_path: Path) -> None:
    for name in ("a/part-0.csv", "b/part-0.csv"):
        write(tmp_path / name, "1,x,0", "1,x,0", "2,y,0")
    assert counts(db.data.ingest(tmp_path, "t")) == (6, 0, 0, 0)
    assert counts(db.data.ingest(tmp_path, "t")) == (0, 0, 6, 0)
    write(tmp_path / "c/part-0.csv", "1,x,0", "3,z,0")
    assert counts(db.data.ingest(tmp_path, "t")) == (2, 0, 6, 0)  # the other files are not read for that
    assert db.data.find({"id": 1}).count() == 5
    (tmp_path / "a/part-0.csv").touch()  # read again
    assert counts(db.data.ingest(tmp_path, "t")) == (0, 0, 8, 0)


def test_a_row_with_a_key_is_updated_wherever_it_comes_from(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "1,a,0", "2,b,0", "3,c,0")
    assert counts(db.data.ingest(file, "t", key="id")) == (3, 0, 0, 0)
    ids = {sample["id"]: sample.id for sample in db.data.find()}
    db.data.find({"id": 2}).update({"$set": {"label": 7, "checked": True}})  # by a person
    other = write(tmp_path / "other.csv", "2,bb,0", "1,a,0")
    assert counts(db.data.ingest(other, "t", key=["id"])) == (0, 1, 1, 0)
    two = db.data.find({"id": 2}).first()
    assert (two.id, two["name"], two["label"], two["checked"]) == (ids[2], "bb", 7, True)
    write(other, "2,bb,1")
    assert counts(db.data.ingest(other, "t", key="id"))[1] == 1
    assert db.data.find({"id": 2}).first()["label"] == 1  # the source has another label now
    narrowed = db.data.ingest(other, "t", rows=Rows(key="id", source_id="b"))
    assert counts(narrowed) == (1, 0, 0, 0)
    report = db.data.ingest(write(tmp_path / "d.csv", "9,x,0", "9,y,0", ",z,0"), "d", key="id")
    assert (report.added, [where for where, _ in report.failed]) == (1, ["d.csv, row 2", "d.csv, row 1"])


def test_a_sample_that_another_door_has_written_under_its_key(db: TensorDB, tmp_path: Path) -> None:
    ids = Identities(db.project, "t")
    with db.data.writer("t") as writer:
        for n in (1, 2):
            writer.add(_id=ids.of_key(row_key([n])), id=n, name="x", label=0)
    file = write(tmp_path / "t.csv", "1,a,0", "2,x,0", "3,c,0")
    assert counts(db.data.ingest(file, "t", key="id")) == (1, 2, 0, 0)
    assert db.data.find({"id": 1}).first()["name"] == "a" and db.data.find().count() == 3
    assert counts(db.data.ingest(file, "t", key="id", verify="none")) == (0, 0, 3, 0)


def test_what_happens_on_a_change(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "1,a,0", "2,b,0")
    db.data.ingest(file, "t", key="id")
    write(file, "1,aa,0", "2,b,0")
    assert counts(db.data.ingest(file, "t", key="id", on_change="skip")) == (0, 0, 2, 0)
    report = db.data.ingest(file, "t", key="id", on_change="error")
    assert report.unchanged == 1 and report.failed[0].where == "t.csv, row 0" and "differs" in report.failed[0].why
    assert len(db.data.ingest(file, "t", key="id", on_change="error").failed) == 1  # said again
    other = write(tmp_path / "new.csv", "1,other,0", *(f"{i},n,0" for i in range(10, 5000)))
    for _ in range(2):  # the first rows of a file that has more
        assert len(db.data.ingest(other, "t", key="id", on_change="error").failed) == 1
    assert counts(db.data.ingest(file, "t", key="id")) == (0, 1, 1, 0)


def test_a_changed_file_is_an_update(db: TensorDB, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for i in range(3):
        picture(folder / f"cat/{i}.png", i)
    assert counts(db.data.ingest(folder, "pets")) == (3, 0, 0, 0)
    before = db.data.find({"path": "cat/1.png"}).first()
    db.data.find({"path": "cat/1.png"}).update({"$set": {"note": "seen"}})
    picture(folder / "cat/1.png", 200)
    assert counts(db.data.ingest(folder, "pets")) == (0, 1, 2, 0)
    after = db.data.find({"path": "cat/1.png"}).first()
    assert (after.id, after["note"], int(after["image"][0, 0, 0])) == (before.id, "seen", 200)
    (folder / "cat/2.png").unlink()
    assert counts(db.data.ingest(folder, "pets")) == (0, 0, 2, 1)
    assert counts(db.data.ingest(folder, "pets")) == (0, 0, 2, 1)
    report = db.data.ingest(folder, "pets", prune=True)
    assert counts(report) == (0, 0, 2, 0) and report.pruned == 1
    assert db.data.find().count() == 2
    picture(folder / "cat/2.png", 2)
    assert counts(db.data.ingest(folder, "pets")) == (1, 0, 2, 0)
    moved = folder.rename(tmp_path / "moved")
    assert counts(db.data.ingest(moved, "pets", source_id="pets"))[0] == 3
    moved = moved.rename(tmp_path / "again")
    assert counts(db.data.ingest(moved, "pets", source_id="pets")) == (0, 0, 3, 0)


def test_files_of_a_list_and_of_a_glob_are_the_same(db: TensorDB, tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"photos/{i}.png", i)
    db.data.ingest(tmp_path / "photos", "p")
    assert counts(db.data.ingest(str(tmp_path / "photos/*.png"), "p")) == (0, 0, 3, 0)
    assert counts(db.data.ingest([tmp_path / "photos/0.png", tmp_path / "photos/2.png"], "p")) == (0, 0, 2, 0)
    assert counts(db.data.ingest(str(tmp_path / "photos/{0..1}.png"), "p")) == (0, 0, 2, 0)
    picture(tmp_path / "others/0.png", 9)  # a file of the same name in another folder
    assert counts(db.data.ingest(tmp_path / "others", "p")) == (1, 0, 0, 0)


def test_a_second_run_opens_new_and_changed_files_alone(
    db: TensorDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        write(tmp_path / f"{i}.csv", f"{i},x,0")
    db.data.ingest(tmp_path, "t")
    opened: list[str] = []
    real = Files.open
    monkeypatch.setattr(Files, "open", lambda self, file: opened.append(file.name) or real(self, file))
    assert counts(db.data.ingest(tmp_path, "t")) == (0, 0, 4, 0)
    assert opened == []
    write(tmp_path / "1.csv", "1,changed,0")
    write(tmp_path / "9.csv", "9,x,0")
    db.data.ingest(tmp_path, "t")
    assert set(opened) == {"1.csv", "9.csv"}
    opened.clear()
    db.data.ingest(tmp_path, "t", verify="header")
    assert set(opened) == {f"{i}.csv" for i in (0, 1, 2, 3, 9)}  # other options, other rows


def test_deleted_samples_come_back_and_a_dropped_dataset_too(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "1,a,0", "2,b,0")
    db.data.ingest(file, "t")
    db.data.find({"id": 1}).delete()
    assert counts(db.data.ingest(file, "t")) == (1, 0, 1, 0)
    db.data.drop("t")
    assert counts(db.data.ingest(file, "t")) == (2, 0, 0, 0)


def test_a_renamed_dataset_keeps_its_rows(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "1,a,0", "2,b,0")
    db.data.ingest(file, "t", key="id")
    db.data.rename("t", "u")
    assert counts(db.data.ingest(file, "u", key="id")) == (0, 0, 2, 0)
    assert counts(db.data.ingest(file, "t", key="id")) == (2, 0, 0, 0)  # a new dataset of the old name
    assert counts(db.data.ingest(write(file, "1,aa,0"), "t", key="id")) == (0, 1, 0, 1)
    assert db.data.find({"dataset": "u"}).distinct("name") == ["a", "b"]


def test_samples_of_version_01_are_taken_over(db: TensorDB, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for i in range(3):
        picture(folder / f"cat/{i}.png", i)
    table = write(tmp_path / "t.csv", "1,a,0", "2,b,0")
    make, of_table = old_ids(db.project, "pets", {}), old_ids(db.project, "t", {"split": "x"})
    with db.data.writer("pets") as writer:
        for i in range(3):
            data = (folder / f"cat/{i}.png").read_bytes()
            id = make(old_key(f"cat/{i}.png", 0, data))
            writer.add(_id=id, image=data, label=0, path=f"cat/{i}.png", **{"class": "cat"})
    with db.data.writer("t") as writer:
        for i, (n, name) in enumerate([(1, "a"), (2, "b")]):
            id = of_table(old_key("t.csv", i, f"{n}\x1f{name}\x1f0".encode()))
            writer.add(_id=id, id=n, name=name, label=0, split="x")
    assert counts(db.data.ingest(folder, "pets")) == (0, 0, 3, 0)
    assert counts(db.data.ingest(table, "t", set={"split": "x"})) == (0, 0, 2, 0)
    picture(folder / "cat/1.png", 100)
    assert counts(db.data.ingest(folder, "pets")) == (0, 1, 2, 0)
    assert counts(db.data.ingest(write(table, "2,b,0", "1,a,0"), "t", set={"split": "x"})) == (0, 0, 2, 0)
    (folder / "cat/2.png").unlink()
    assert counts(db.data.ingest(folder, "pets")) == (0, 0, 2, 1)


def test_a_dry_run_writes_nothing(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "1,a,0", "2,b,0")
    report = db.data.ingest(file, "t", key="id", dry_run=True)
    assert counts(report) == (2, 0, 0, 0) and list(report.schema) == ["id", "name", "label"]
    assert db.data.schema("t") is None and db.data.find().count() == 0
    assert db.database["sources"].count_documents({}) == 0
    assert "t" not in db.warehouse.datasets.versions()
    db.data.ingest(file, "t", key="id")
    write(file, "1,b,0", "3,c,0")
    assert counts(db.data.ingest(file, "t", key="id", dry_run=True)) == (1, 1, 0, 1)
    assert counts(db.data.ingest(file, "t", key="id")) == (1, 1, 0, 1)


def test_reports(db: TensorDB, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    picture(folder / "cat/0.png", 0)
    for i in range(3):
        (folder / f"cat/bad{i}.png").write_bytes(b"no")
    (folder / "readme.txt").write_text("x")
    report = db.data.ingest(folder, "pets")
    assert str(report).startswith("1 added · 0 updated · 0 unchanged · 3 failed · ignored: 1 .txt · ")
    assert report.ignored == {".txt": 1} and report.skipped == 0
    assert json.loads(report.to_json())["failed"][0][0] == "cat/bad0.png"
    assert "bad0.png" in report._repr_html_()
    with pytest.raises(IngestError, match=r"3 of dataset 'pets' did not come in: cat/bad0.png: .*") as caught:
        report.raise_if_failed()
    assert caught.value.report is report
    assert len(db.data.ingest(folder, "pets").failed) == 3  # said again
    with pytest.raises(IngestError, match="bad0"):
        db.data.ingest(folder, "pets", on_error="raise")
    with pytest.raises(IngestError, match="3 failures"):
        db.data.ingest(folder, "pets", checks=Checks(on_error=2))
    db.data.ingest(folder, "pets", on_error=3).to_json()
    (folder / "cat/0.png").unlink()
    assert db.data.ingest(folder, "pets").added == 0


def test_options_that_do_not_fit_are_named(db: TensorDB, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "1,a,0", head=",name,label")
    for options, error, says in (
        ({"on_change": "no"}, QueryError, "on_change= is one of 'update'"),
        ({"rows": Rows(), "key": "id"}, QueryError, "rows= and key= are both given"),
        ({"columns": Rows()}, QueryError, r"columns= is a Columns\(fields=\.\.\.\)"),
        ({"key": "nam"}, SchemaError, "key: the source has no column 'nam'; did you mean 'name'"),
        ({"skip": ["x"]}, SchemaError, "skip: the source has no column 'x'; it has '', 'name', 'label'"),
        ({"rename": {"name": "label"}}, SchemaError, "two columns would be called 'label'"),
        ({"types": {"name": "text!"}}, SchemaError, "types= is a dict of a Field"),
        ({"types": {"label": "bool"}}, None, ""),
        ({"format": "csb"}, SchemaError, "did you mean 'csv'"),
        ({"verify": "all"}, QueryError, "verify= is one of"),
        ({"split": "name2"}, SchemaError, "split: the source has no column 'name2'"),
        ({"oops": 1}, TypeError, "ingest has no option oops="),
        ({"sett": {}}, TypeError, r"did you mean set=\?"),
    ):
        if error is None:
            report = db.data.ingest(file, "t", **options)
            assert report.added == 0 and "expected bool, found str '0'" in report.failed[0].why
        else:
            with pytest.raises(error, match=says):
                db.data.ingest(file, "t", **options)
    report = db.data.ingest(file, "t", columns=Columns(rename={"": "index"}, skip=["label"], set={"split": "train"}))
    assert list(report.schema) == ["index", "name", "split"]
    assert db.data.ingest(file, "t2").notes == ["a column without a name was left out; rename={'': 'index'} takes it"]
    assert list(db.data.ingest(file, "t3", skip=[""], split="name").schema) == ["split", "label"]


SCRIPT = """
import sys
from tensordb_data import TensorDB
from tensordb_data.ingest import run
left = int(sys.argv[3])
def progress(done, total, report):
    global left
    left -= 1
    if left <= 0:
        print("here", flush=True)
        sys.stdin.read()
db = TensorDB(sys.argv[1], blobs=sys.argv[4])
db.data.ingest(sys.argv[2], "t", progress=progress, key="id")
"""


@pytest.mark.parametrize("point", [1, 3])
def test_kill_9_between_commits(db: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path, point: int) -> None:
    for part in range(3):
        write(tmp_path / f"t/{part}.csv", *(f"{part * 5000 + i},n,0" for i in range(5000)))
    blobs = f"file://{warehouse_dir}/blobs"
    command = [sys.executable, "-c", SCRIPT, mongo_uri, str(tmp_path / "t"), str(point), blobs]
    child = warm.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline().strip() == "here"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    before = db.data.find().count()
    assert 0 < before < 15_000
    assert counts(db.data.ingest(tmp_path / "t", "t", key="id")) == (15_000 - before, 0, before, 0)
    assert len(db.data.find().distinct("id")) == db.data.find().count() == 15_000
    assert counts(db.data.ingest(tmp_path / "t", "t", key="id")) == (0, 0, 15_000, 0)
