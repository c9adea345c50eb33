"""Files of others: nothing that is done to samples or segments touches them, and what is kept of them comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import StorageError, TensorDB
from tests.integration.housekeeping.test_rebuild import lose
from tests.integration.ingest.test_folders import picture

State = dict[str, tuple[int, int, int, int, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(20):
        picture(tmp_path / f"photos/{i % 2}/{i}.png", i)
    # Names as those of our own objects have: they are not ours.
    for name in (
        "segments/0123456789abcdef01234567",
        ".put-1-0123456789ab",
        "params/0123456789abcdef01234567.safetensors",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    return tmp_path / "photos"


@pytest.fixture
def opened(mongo_uri: str, warehouse_dir: Path, photos: Path) -> Iterator[TensorDB]:
    with TensorDB(mongo_uri, blobs=warehouse_dir / "blobs", roots={"photos": photos}) as db:
        assert db.data.ingest(photos, "d", in_place=True).added == 20
        yield db


def state(folder: Path) -> State:
    """All that can be known of the files of a folder, but for when they were read."""
    found: State = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        data = xxhash.xxh3_128_hexdigest(path.read_bytes()) if path.is_file() else ""
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino, data)
    return found


def encoded(db: TensorDB, dataset: str = "d") -> dict[str, bytes | None]:
    found = db.data.find({"dataset": dataset}, sort=[("path", 1)])
    return dict(zip((sample["path"] for sample in found), found.encoded("image"), strict=True))


def everything(db: TensorDB, tmp_path: Path, tag: str) -> None:
    """All that gc, delete, compact, rename, drop, fsck, rebuild and backup do."""
    before = encoded(db)
    db.data.find({"dataset": "d"}, limit=14).delete()
    assert db.data.compact("d").samples == 6
    db.gc(grace=0)
    rest = encoded(db)
    assert len(rest) == 6 and rest.items() <= before.items()
    db.data.rename("d", "e")
    assert encoded(db, "e") == rest
    assert db.fsck().findings == []
    report = db.backup(tmp_path / f"backup{tag}")
    assert any("files below the root 'photos'" in text for text in report.left_out)
    lose(db)
    assert db.rebuild().skipped == []
    assert db.fsck().findings == []
    name = db.data.datasets()[0].name
    assert encoded(db, name) == rest
    db.data.drop(name)
    db.gc(grace=0)
    db.gc(grace=0)
    assert db.data.find().count() == 0 and db.database["segments"].count_documents({}) == 0


@pytest.mark.parametrize("writable", [True, False])
def test_files_are_the_same_afterwards(opened: TensorDB, photos: Path, tmp_path: Path, writable: bool) -> None:
    if not writable:
        for path in [*photos.rglob("*"), photos]:
            path.chmod(0o500 if path.is_dir() else 0o400)
    before = state(photos)
    try:
        everything(opened, tmp_path, str(writable))
    finally:
        assert state(photos) == before
        photos.chmod(0o700)
        for path in photos.rglob("*"):
            path.chmod(0o700)


def test_compaction_copies_places_and_no_bytes(opened: TensorDB, photos: Path, warehouse_dir: Path) -> None:
    opened.data.find({"dataset": "d"}, limit=12).delete()
    os.rename(photos, photos.parent / "away")  # it is not even there
    report = opened.data.compact("d")
    assert (report.samples, report.damaged, report.dying) == (8, [], 1)
    os.rename(photos.parent / "away", photos)
    assert len(encoded(opened)) == 8
    (left,) = opened.database["segments"].find({"state": "live"})
    assert left["roots"] == ["photos"] and left["bytes"] < left["blobs"] + 2500


def test_adopt(opened: TensorDB, photos: Path) -> None:
    before, ids = encoded(opened), [sample.id for sample in opened.data.find({"dataset": "d"})]
    find = opened.data.find({"dataset": "d"})
    stream = iter(find.stream(batch_size=5, passes=1, fields=["path"]))
    next(stream)
    one = find.first()["path"]
    (photos / one).rename(photos / "moved.png")
    report = find.adopt()
    assert (report.samples, report.segments, len(report.damaged)) == (19, 1, 1) and one in report.damaged[0]
    (photos / "moved.png").rename(photos / one)
    report = find.adopt()
    assert (report.samples, report.damaged, report.dying) == (1, [], 1)
    assert find.adopt().samples == 0
    assert [sample.id for sample in find] == ids
    os.rename(photos, photos.parent / "away")
    opened.gc(grace=0)
    assert encoded(opened) == before and opened.fsck().findings == []
    assert len(list(stream)) == 3
    lose(opened)
    opened.rebuild()
    assert encoded(opened) == before


def test_adopt_beside_an_update(opened: TensorDB, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that was replaced meanwhile stays what it is."""
    from tensordb_data.samples import compact

    put, done = compact.put_segment, []

    def meanwhile(*given: object) -> None:
        put(*given)  # type: ignore[arg-type]
        if not done:
            done.append(1)
            picture(photos / "0/0.png", 99)
            assert opened.data.ingest(photos, "d", in_place=True).updated == 1

    monkeypatch.setattr(compact, "put_segment", meanwhile)
    assert opened.data.find({"dataset": "d"}).adopt().samples == 19
    assert encoded(opened)["0/0.png"] == (photos / "0/0.png").read_bytes()
    assert opened.fsck().findings == []


def test_files_that_no_sample_needs_any_more(opened: TensorDB, photos: Path) -> None:
    for path in photos.glob("1/*.png"):
        path.unlink()
    picture(photos / "0/0.png", 99)
    assert {f.kind for f in opened.fsck().findings} == {"missing file", "changed file"}
    report = opened.data.ingest(photos, "d", in_place=True, prune=True)
    assert (report.updated, report.pruned) == (1, 10)
    assert opened.fsck().findings == []  # the old segment stays for the others


def test_a_copy_of_the_backup_reads_the_files(opened: TensorDB, photos: Path, tmp_path: Path, mongo_uri: str) -> None:
    before = encoded(opened)
    opened.backup(tmp_path / "b")
    target = tmp_path / "restored"
    TensorDB.restore(tmp_path / "b", target)
    with TensorDB(target, roots={"photos": photos}) as again:
        assert encoded(again) == before
    with TensorDB(target) as again, pytest.raises(StorageError, match="tensordb roots add"):
        encoded(again)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["delete", "compact", "gc", "adopt", "edit", "add", "fsck"]), max_size=8))
def test_any_order(opened: TensorDB, photos: Path, steps: list[str]) -> None:
    dataset = f"s{len(list(opened.data.datasets()))}"
    opened.data.ingest(photos, dataset, in_place=True)
    for number, step in enumerate(steps):
        find = opened.data.find({"dataset": dataset})
        before = state(photos)
        if step == "edit" and (path := next(iter(photos.glob("[01]/*.png")), None)) is not None:
            picture(path, 1000 + number)
            before = state(photos)
            opened.data.ingest(photos, dataset, in_place=True)
        elif step == "add":
            picture(photos / f"1/{dataset}{number}.png", 2000 + number)
            before = state(photos)
            opened.data.ingest(photos, dataset, in_place=True)
        elif step == "delete":
            opened.data.find({"dataset": dataset}, limit=4).delete()
        elif step == "compact":
            opened.data.compact(dataset)
        elif step == "gc":
            opened.gc(grace=0)
        elif step == "adopt":
            opened.data.find({"dataset": dataset}, limit=5).adopt()
        else:
            found = opened.fsck().findings
            assert not [f for f in found if dataset in f.where]
        assert state(photos) == before
        assert len(encoded(opened, dataset)) == find.count()
    for path, data in encoded(opened, dataset).items():
        assert data == (photos / path).read_bytes()
