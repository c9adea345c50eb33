"""Folders of sound and video into a dataset, and clips and windows out of it again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tensordb_data import Array, Audio, Clip, SampleError, Scalar, TensorDB, Video, Window, mix
from tensordb_data.api.selection import Selection
from tensordb_data.torch import QueryDataset
from tests.media.recordings import number_of, sound, video

SOUNDS = {"train/cat/a.wav": sound(8000), "train/dog/b.flac": sound(6000, form="FLAC"),
          "val/cat/c.mp3": sound(5000, form="MP3"), "val/dog/d.ogg": sound(4000, channels=1, form="OGG")}  # fmt: skip
VIDEOS = {"b/a.mp4": video(48), "b/c.mkv": video(40, "matroska", vfr=True), "b/d.mp4": video(48, rotation=90)}


def folder(at: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(data)
    return at


@pytest.fixture
def videos(db: TensorDB, tmp_path: Path) -> Selection[Any]:
    assert db.data.ingest(folder(tmp_path / "v", VIDEOS), "films").failed == []
    return db.data.find({"dataset": "films"})


def test_a_folder_of_sound(db: TensorDB, tmp_path: Path) -> None:
    place = folder(tmp_path / "s", {**SOUNDS, "train/dog/bad.wav": SOUNDS["train/cat/a.wav"][:3000],
                                    "train/dog/x.m4a": b"....ftypM4A ", "notes.txt": b"no sound"})  # fmt: skip
    report = db.data.ingest(place, "sounds")
    assert report.added == 4 and report.ignored == {".txt": 1}
    assert {(one.where, one.why[:14]) for one in report.failed} == {
        ("train/dog/bad.wav", "expected 32000"), ("train/dog/x.m4a", ".m4a is not re")}  # fmt: skip
    assert dict(db.data.schema("sounds")) == {
        "audio": Audio(), "label": Scalar("int"), "class": Scalar("str"), "split": Scalar("str"),
        "rate": Scalar("int"), "channels": Scalar("int"), "frames": Scalar("int"), "path": Scalar("str"),
    }  # fmt: skip
    for sample in db.data.find({"dataset": "sounds"}):
        assert sample.encoded("audio") == SOUNDS[sample["path"]]
        assert sample["audio"].shape == (sample["frames"], sample["channels"]) and sample["rate"] == 8000
        assert sample["path"].startswith(f"{sample['split']}/{sample['class']}/")
    assert db.data.find({"dataset": "sounds", "frames": {"$gt": 5500}, "class": "dog"}).count() == 1
    again = db.data.ingest(place, "sounds")
    assert (again.added, again.unchanged, again.nbytes) == (0, 4, 3000)
    assert "Audio()" in repr(db.data.find({"dataset": "sounds"}).describe())
    assert "Audio" in db.data.find({"dataset": "sounds"}).first()._repr_html_()


def test_a_table_says_what_sounds_are(db: TensorDB, tmp_path: Path) -> None:
    names = ["a.wav", "b.wav"]
    place = folder(tmp_path / "s", {name: sound(100 + n) for n, name in enumerate(names)})
    (place / "metadata.csv").write_text("file_name,speaker,rate\na.wav,x,1\nb.wav,y,2\n")
    report = db.data.ingest(place, "speech")
    assert report.added == 2 and report.failed == [] and not report.ignored
    rows = {row["path"]: (row["speaker"], row["rate"], row["frames"]) for row in db.data.find({"dataset": "speech"})}
    assert rows == {"a.wav": ("x", 1, 100), "b.wav": ("y", 2, 101)}


def test_columns_of_sound_and_paths(db: TensorDB, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa

    place = folder(tmp_path, {"a.wav": sound(100), "b.wav": sound(200)})
    rows = [{"bytes": (place / name).read_bytes(), "path": name} for name in ("a.wav", "b.wav")]
    kind = datasets.Features({"audio": datasets.Audio(sampling_rate=4000)})
    hub = datasets.Dataset(pa.table({"audio": rows}, schema=kind.arrow_schema))
    assert db.data.ingest(hub, "hub").added == 2
    assert db.data.schema("hub")["audio"] == Audio(4000)
    assert [len(row["audio"]) for row in db.data.find({"dataset": "hub"})] == [50, 100]
    assert db.data.ingest(pa.table({"sound": rows}), "plain").added == 2
    assert db.data.schema("plain")["sound"] == Audio()
    (place / "list.csv").write_text("file,n\na.wav,1\nb.wav,2\n")
    assert db.data.ingest(place / "list.csv", "listed", files={"file": Audio()}).added == 2
    assert [len(row["file"]) for row in db.data.find({"dataset": "listed"})] == [100, 200]


def test_windows_are_a_function_of_seed_and_position(db: TensorDB, tmp_path: Path) -> None:
    db.data.ingest(folder(tmp_path / "s", SOUNDS), "sounds")
    sel = db.data.find({"dataset": "sounds"})
    window = {"audio": Window(0.25, mono=True)}
    options: dict[str, Any] = {"fields": ["audio", "path"], "shuffle": True, "decode": window}
    stream = sel.stream(batch_size=2, **options)
    assert stream.element_spec()["audio"] == ("float32", (None, 1))
    first = list(itertools.islice(stream, 8))
    assert all(batch["audio"].shape == (2, 2000, 1) and batch["audio"].dtype == np.float32 for batch in first)
    flat = np.concatenate([batch["audio"] for batch in first])
    other = np.concatenate([b["audio"] for b in itertools.islice(sel.stream(batch_size=4, **options), 4)])
    assert np.array_equal(flat, other) and len(np.unique(flat[:, 0, 0])) > 8
    again = sel.stream(batch_size=2, **options)
    list(itertools.islice(again, 3))
    resumed = sel.stream(batch_size=2, **options)
    resumed.load_state_dict(again.state_dict())
    assert np.array_equal(next(iter(resumed))["audio"], first[3]["audio"])


def test_a_folder_of_video(db: TensorDB, videos: Selection[Any], tmp_path: Path) -> None:
    rows = {row["path"]: row for row in videos}
    assert {name: row.encoded("video") for name, row in rows.items()} == VIDEOS
    film = rows["b/c.mkv"]
    assert (film["frames"], film["height"], film["width"]) == (40, 48, 64) and abs(film["duration"] - 1.6) < 0.05
    assert abs(film["fps"] - 25) < 1 and (rows["b/d.mp4"]["height"], rows["b/d.mp4"]["width"]) == (64, 48)
    assert db.data.schema("films")["video"] == Video()
    assert db.data.schema("films")["video_packets"] == Array("int64", (None, 2), optional=True)
    (tmp_path / "v/b/bad.mp4").write_bytes(VIDEOS["b/a.mp4"][:-500])
    (failure,) = db.data.ingest(tmp_path / "v", "films").failed
    assert failure.where == "b/bad.mp4" and "truncated" in failure.why


CLIP = {"video": Clip(frames=4, stride=3)}


def starts(batches: Any) -> list[tuple[str, int]]:
    """The path of each video, and the number of the first frame of its clip, whose frames are those that they are."""
    found = []
    for batch in batches:
        for path, clip in zip(batch["path"], batch["video"], strict=True):
            clip = np.asarray(clip)
            if path == "b/d.mp4":  # on its side: its red corner comes back to where it was
                clip = np.rot90(clip, 1 if clip[0, 4, -4, 0] > 200 > 99 > clip[0, 4, -4, 1] else -1, axes=(1, 2))
            shown = [number_of(frame) for frame in clip]
            assert shown == list(range(shown[0], shown[0] + 12, 3))
            found.append((path, shown[0]))
    return found


def test_clips_are_a_function_of_seed_and_position(db: TensorDB, videos: Selection[Any]) -> None:
    upright = videos & {"path": {"$ne": "b/d.mp4"}}
    options: dict[str, Any] = {"shuffle": True, "decode": CLIP}
    stream = upright.stream(batch_size=2, **options)
    assert "video_packets" not in stream.element_spec() and "video" in stream.element_spec()
    first = list(itertools.islice(stream, 6))
    facts = {"fps", "frames", "duration", "width", "height"}
    assert set(first[0]) == {"video", "path", "class", "label", *facts} and first[0]["video"].shape == (2, 4, 48, 64, 3)
    expected = starts(first)
    assert len({start for _, start in expected}) > 3
    assert starts(itertools.islice(upright.stream(batch_size=1, **options), 12)) == expected
    resumed = upright.stream(batch_size=1, **options)
    resumed.load_state_dict((broken := upright.stream(batch_size=1, **options)).state_dict())
    list(itertools.islice(broken, 5))
    resumed.load_state_dict(broken.state_dict())
    assert starts(itertools.islice(resumed, 7)) == expected[5:]
    loader = DataLoader(QueryDataset(upright, batch_size=2, **options), batch_size=None, num_workers=1)
    assert starts(itertools.islice(loader, 6)) == expected
    mixed = next(iter(mix([(upright.stream(batch_size=2, **options), 1.0)], seed=0)))
    assert starts([mixed])
    assert starts([upright.dataset(["video", "path"], decode=CLIP)[[0, 1]]])


def test_the_table_of_frames_is_delivered_where_it_is_asked_for(videos: Selection[Any]) -> None:
    batch = next(iter(videos.stream(batch_size=3, fields=["video", "video_packets", "path"], decode=CLIP)))
    assert set(batch) == {"video", "video_packets", "path"} and batch["video_packets"][0].shape[1] == 2
    assert set(next(iter(videos.stream(batch_size=3, fields=["video"], decode=CLIP)))) == {"video"}


def test_clips_without_a_table_and_of_turned_videos(db: TensorDB, videos: Selection[Any]) -> None:
    with db.data.writer("plain", schema={"video": Video(), "path": str}) as writer:
        for name, data in VIDEOS.items():
            writer.add(video=data, path=name)
    plain = db.data.find({"dataset": "plain"})
    for options in ({}, {"shuffle": True, "ragged": "list"}):
        found = [starts(itertools.islice(sel.stream(batch_size=1, fields=["video", "path"], decode=CLIP, **options), 6))
                 for sel in (plain, videos)]  # fmt: skip
        assert found[0] == found[1]
    shapes = {row["path"]: row["video"].shape for row in plain}
    assert shapes["b/d.mp4"] == (48, 64, 48, 3)


def test_a_damaged_video_is_a_bad_sample(db: TensorDB) -> None:
    with db.data.writer("bad", schema={"video": Video(), "n": int}) as writer:
        writer.add(video=VIDEOS["b/a.mp4"], n=0)
        writer.add(video=VIDEOS["b/a.mp4"][:2000], n=1)
        writer.add(video=video(5), n=2)
    bad = db.data.find({"dataset": "bad"})
    for n, why in ((1, "truncated"), (2, 'or "loop" fills it up')):
        with pytest.raises(SampleError, match=rf"field 'video': .*{why}"):
            list((bad & {"n": n}).stream(batch_size=1, passes=1, decode=CLIP))
    kept = list(bad.stream(batch_size=1, passes=1, decode=CLIP, max_failures=2))
    assert [batch["n"].tolist() for batch in kept if batch] == [[0]]


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_exports_copy_the_bytes(db: TensorDB, tmp_path: Path, form: str, videos: Selection[Any]) -> None:
    db.data.ingest(folder(tmp_path / "s", SOUNDS), "sounds")
    for name, field, files in (("sounds", "audio", SOUNDS), ("films", "video", VIDEOS)):
        out = tmp_path / f"{name}-{form}"
        fields = [field, "path"]
        db.data.find({"dataset": name}).export(out, form, fields=fields)
        if form == "folder":
            suffixes = {Path(path).suffix for path in files}
            assert sorted(p.read_bytes() for p in out.rglob("*") if p.suffix in suffixes) == sorted(files.values())
            continue
        source = out / "data" if (out / "data").is_dir() else out
        back = db.data.ingest(source, f"{name}-back")
        assert back.added == len(files) and back.failed == []
        found = db.data.find({"dataset": f"{name}-back"})
        blobs = [one for one, kind in db.data.schema(f"{name}-back").items() if kind.is_blob]
        stored = [data for one in blobs for data in found.encoded(one) if data is not None]
        assert sorted(stored) == sorted(files.values())
        if form == "parquet":
            assert type(db.data.schema(f"{name}-back")[field]) in (Audio, Video)
