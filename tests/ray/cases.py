"""What test_ray.py runs: Ray Data reads Selections, writes samples and annotates them, whatever dies meanwhile."""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from bson import ObjectId
from ray.data.expressions import col

from tensordb_data import (
    Array,
    Bytes,
    ConnectError,
    PortableAddress,
    QueryError,
    Scalar,
    SchemaError,
    Selection,
    TensorDB,
    Text,
)  # fmt: skip
from tensordb_data.mongo.address import Address
from tensordb_data.ray import annotate, read, write
from tensordb_data.ray.annotating import AnnotateSink
from tensordb_data.ray.reading import SelectionDatasource, read_blocks
from tensordb_data.ray.writing import WriteSink
from tensordb_data.warehouse.context import Warehouse
from tests.docs.test_docs import blocks

N = 40
ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = {
    "num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 << 20,
    "_temp_dir": os.environ["TDB_RAY_FOLDER"],
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(**CLUSTER)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture
def folder() -> Path:
    """One that is there until Ray has ended: its workers keep the server of a warehouse in it."""
    return Path(tempfile.mkdtemp(prefix="w", dir=CLUSTER["_temp_dir"]))


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    schema = {
        "image": Array("uint8", (2, 3)), "ragged": Array("float32", (None, 2)), "label": Scalar("int"),
        "name": Scalar("str"), "at": Scalar("datetime"), "meta": Scalar("json"), "raw": Bytes(), "text": Text(),
        "note": Scalar("int", optional=True), "emb": Array("float32", (2,), optional=True),
    }  # fmt: skip
    with db.data.writer("d", schema=schema) as writer:
        for number in range(N):
            optional = {"note": 2**53 + number, "emb": np.ones(2, np.float32)} if number % 2 else {}
            writer.add(
                image=np.full((2, 3), number, np.uint8), label=number, name=f"n{number}", raw=b"%d" % number,
                ragged=np.full((number % 3, 2), number, np.float32), at=dt.datetime(2026, 1, 1 + number % 9),
                meta={"k": [number, None]}, text=f"é{number}", tags=["t"], **optional,
            )  # fmt: skip
    return db.data.find({"dataset": "d"})


def by_label(ds: Any) -> list[dict[str, Any]]:
    return sorted(ds.take_all(), key=lambda row: row["label"])


def test_read_gives_all_samples_with_their_kinds(sel: Selection[Any]) -> None:
    ds = read(sel)
    samples = sel.all()
    names = ["image", "ragged", "label", "name", "at", "meta", "raw", "text", "_id"]
    assert ds.schema().names == names and ds.count() == N
    rows = by_label(ds)
    assert [row["_id"] for row in rows] == [str(sample.id) for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert row["image"].dtype == np.uint8 and (row["image"] == sample["image"]).all()
        assert row["ragged"].dtype == np.float32 and np.array_equal(row["ragged"], sample["ragged"])
        assert (row["name"], row["raw"], row["text"]) == (sample["name"], sample["raw"], sample["text"])
        assert row["at"].replace(tzinfo=None) == sample["at"].replace(tzinfo=None)
        assert row["meta"] == f'{{"k": [{sample["label"]}, null]}}'


def test_only_what_is_named_and_needed_is_read(db: TensorDB, sel: Selection[Any]) -> None:
    rows = by_label(read(sel, fields=["label", "note"]))
    assert set(rows[0]) == {"label", "note", "_id"}
    assert [row["note"] for row in rows[:4]] == [None, 2**53 + 1, None, 2**53 + 3]
    ds = read(sel).filter(expr=(col("label") >= 37) & (col("name") != "n38")).select_columns(["image", "label"])
    assert [row["image"].max() for row in by_label(ds)] == [37, 39] and set(ds.take(1)[0]) == {"image", "label"}
    assert read(sel, fields=["note", "label"]).filter(expr=col("note") > 2**53 + 30).count() == 5  # 31, 33, …, 39
    assert read(sel).filter(expr=col("label") > 99).count() == 0
    assert read(db.data.find({"label": -1})).count() == 0
    has = sel & {"emb": {"$exists": True}}
    assert len(read(has, fields=["emb"]).take_all()) == N // 2
    with pytest.raises(Exception, match=r"has no 'emb'; narrow the query"):
        read(sel, fields=["emb"]).take_all()
    with pytest.raises(QueryError, match="no field 'labl'"):
        read(sel, fields=["labl"])
    with pytest.raises(QueryError, match="takes a Selection"):
        read(db)  # type: ignore[arg-type]


def test_predicate_and_projection_are_taken_over(sel: Selection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.blobs.reader.reader import BlobReader

    fetched: list[int] = []
    load = BlobReader.read

    def counting(self: Any, refs: Any, *args: Any) -> Any:
        fetched.append(len(refs))
        return load(self, refs, *args)

    monkeypatch.setattr(BlobReader, "read", counting)
    monkeypatch.setattr(BlobReader, "read_rows", None, raising=False)
    parts = sel.partitions(3)
    source = SelectionDatasource(parts, None)
    narrowed = source.apply_predicate(col("label") < 3).apply_projection({"name": "name"})
    assert narrowed is not source and source.apply_predicate(col("nothing") > 3) is source
    blocks = [block for task in narrowed.get_read_tasks(2) for block in task()]
    assert [name for block in blocks for name in block["name"].to_pylist()] == ["n0", "n1", "n2"]
    assert {tuple(block.column_names) for block in blocks} == {("name",)} and not fetched
    blocks = list(read_blocks(parts, ("_id",), col("label") < 3, None))
    assert sum(block.num_rows for block in blocks) == 3 and not fetched
    assert [len(source.get_read_tasks(n)) for n in (1, 2, 3, 9)] == [1, 2, 3, 3]
    assert source.estimate_inmemory_data_size() == sum(part.nbytes for part in parts)


def test_all_is_of_the_state_at_the_call(db: TensorDB, sel: Selection[Any]) -> None:
    ds = read(sel, fields=["label", "image"])
    sel.update({"$inc": {"label": 100}})
    (sel & {"name": {"$in": ["n3", "n7"]}}).delete()
    assert [row["label"] for row in by_label(ds)] == [n for n in range(N) if n not in (3, 7)]
    assert by_label(read(sel, fields=["label"]))[0]["label"] == 100


def embed(batch: dict[str, Any]) -> dict[str, Any]:
    return {"_id": batch["_id"], "emb": batch["image"].reshape(len(batch["image"]), -1).astype(np.float32)}


class Dies(WriteSink):
    """The first task dies behind its commit, and Ray runs it again."""

    mark: Path

    def store(self, warehouse: Warehouse, blocks: Any) -> Any:
        report = super().store(warehouse, blocks)
        die_once(self.mark)
        return report


class AnnotatesAndDies(AnnotateSink):
    mark: Path

    def store(self, warehouse: Warehouse, blocks: Any) -> Any:
        report = super().store(warehouse, blocks)
        die_once(self.mark)
        return report


def die_once(mark: Path) -> None:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_dies_behind_its_commit_adds_nothing_twice(
    db: TensorDB, sel: Selection[Any], tmp_path: Path
) -> None:
    sink = write(db, "vectors")
    sink.__class__, sink.mark = Dies, tmp_path / "died"  # type: ignore[attr-defined]
    read(sel, fields=["image"]).map_batches(embed).write_datasink(sink)
    assert (tmp_path / "died").exists() and sink.report is not None
    found = db.data.find({"dataset": "vectors"}).all()
    assert len(found) == N and sorted(sample["emb"][0] for sample in found) == list(range(N))
    assert sink.report.skipped > 0 and sink.report.written + sink.report.skipped == N
    again = write(db, "vectors")
    read(sel, fields=["image"]).map_batches(embed).write_datasink(again)
    assert again.report is not None and (again.report.written, again.report.skipped) == (0, N)


def test_annotate_and_a_task_that_dies(db: TensorDB, sel: Selection[Any], tmp_path: Path) -> None:
    sink = annotate(db.address, source="model:1")
    sink.__class__, sink.mark = AnnotatesAndDies, tmp_path / "died"  # type: ignore[attr-defined]
    sel.delete()
    with db.data.writer("pictures") as writer:
        ids = writer.add_many(image=np.arange(N * 6, dtype=np.uint8).reshape(N, 2, 3))
    sel = db.data.find({"dataset": "pictures"})
    read(sel).map_batches(embed).write_datasink(sink)
    assert (tmp_path / "died").exists() and sink.report is not None and sink.report.written == N
    (batch,) = sel.stream(N, fields=["emb", "image"], passes=1)
    assert batch["emb"].shape == (N, 6) and (batch["emb"] == batch["image"].reshape(N, 6)).all()
    assert sel.similar(ids[3], field="emb", k=1, metric="l2")[0].id in (ids[2], ids[4])
    assert db.fsck().findings == []
    stranger = str(ObjectId())
    again = annotate(db, source="model:2", key="of")
    ray.data.from_items([{"of": stranger, "score": 1.0}, {"of": str(ids[0]), "score": 2.0}]).write_datasink(again)
    assert again.report is not None and (again.report.written, again.report.unknown) == (1, (stranger,))
    assert db.data.find({"_id": ids[0]}).first()["score"] == 2.0


def test_a_row_is_known_by_its_key_its_id_or_its_content(db: TensorDB) -> None:
    rows = [{"of": f"k{n % 5}", "part": n % 2, "x": float(n % 3)} for n in range(10)]
    sink = write(db, "one", key="of")
    ray.data.from_items(rows).write_datasink(sink)
    assert sink.report is not None and (sink.report.written, sink.report.skipped) == (5, 5)
    with db.data.writer("one", existing="skip") as writer:  # the same key through another door
        writer.add(of="k3", part=0, x=0.0, _key="k3")
    assert writer.skipped == 1
    assert db.data.ingest([{"of": "k2", "part": 0, "x": 9.0}], "one", key="of").added == 0
    two = write(db, "two", key=["of", "part"])
    ray.data.from_items(rows).write_datasink(two)
    assert two.report is not None and two.report.written == 10
    three = write(db, "three")
    ray.data.from_items([{**row, "_key": row["of"]} for row in rows]).write_datasink(three)
    assert three.report is not None and three.report.written == 5 and "_key" not in (db.data.schema("three") or {})
    content = [{"x": n % 4, "v": np.full(3, n % 4, np.float32), "tags": ["a"]} for n in range(8)]
    four = write(db, "four")
    ray.data.from_items(content).write_datasink(four)
    assert four.report is not None and (four.report.written, four.report.skipped) == (4, 4)
    assert db.data.find({"dataset": "four", "tags": "a"}).count() == 4
    assert db.data.ingest([{"x": 3, "v": np.full(3, 3, np.float32)}], "four").added == 0


def test_what_was_read_can_be_written(db: TensorDB, sel: Selection[Any]) -> None:
    schema = {**(db.data.schema("d") or {})}
    read(sel, fields=["image", "ragged", "label", "name", "at", "raw", "text", "note"]).write_datasink(
        write(db, "copy", key="label", schema={k: v for k, v in schema.items() if k not in ("meta", "emb")})
    )
    for one, other in zip(sel, db.data.find({"dataset": "copy"}, sort=[("label", 1)]), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in ("image", "ragged"))
        assert all(one.get(name) == other.get(name) for name in ("label", "name", "at", "raw", "text", "note"))


def test_what_does_not_fit_is_told(db: TensorDB) -> None:
    ds = ray.data.from_items([{"x": 1}])
    with pytest.raises(Exception, match="no column 'y'; they have x"):
        ds.write_datasink(write(db, "d", key="y"))
    with pytest.raises(Exception, match="no column '_id'"):
        ds.write_datasink(annotate(db, source="m"))
    with pytest.raises(Exception, match="expected int, found str"):
        ray.data.from_items([{"x": "a"}]).write_datasink(write(db, "e", schema={"x": int}))
    with pytest.raises(QueryError, match=r"expected a TensorDB or its address.*found a str"):
        write("mongodb://me:pw@db1", "d")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="key is the name"):
        write(db, "d", key=[])
    with pytest.raises(QueryError, match="source="):
        annotate(db, source="")
    for call in (lambda c: write(db, "d", credentials=c), lambda c: read(db.data.find(), credentials=c)):
        with pytest.raises(ConnectError, match="'env:NAME'"):
            call("mongodb://me:pw@db1")


def test_the_example_embeds_once_and_finds_pictures_of_a_kind(
    mongo_uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("embed_ray", ROOT / "examples/embed_ray.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.syspath_prepend(ROOT / "examples")
    ray.cloudpickle.register_pickle_by_value(sys.modules.setdefault("embed_ray", example))
    assert [example.main(mongo_uri, 300), example.main(mongo_uri, 300), example.main(mongo_uri, 320)] == [300, 0, 20]
    lines = [line for line in capsys.readouterr().out.splitlines() if "is near" in line]
    assert len(lines) == 15 and all(line.split()[1] == line.split()[-2].rstrip(":") for line in lines)


def test_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/engines.md"
    lines = page.read_text().splitlines()
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for language, start, block, run in blocks(page):
        if language == "python" and (run or "tests/ray runs" in lines[start - 2]):
            if "multiprocessing" in block[0]:  # a process with the threads of Ray is not to be forked
                block = ["db.data.annotate_many(_id=[one.id for one in pictures], source='mean',"
                         " brightness=[one['image'].mean() for one in pictures])"]  # fmt: skip
            code = compile("\n" * start + "\n".join(block), str(page), "exec")
            exec(code, names)  # noqa: S102
    names["db"].close()


@pytest.mark.skipif(os.environ.get("MATRICES") != "all", reason="Ray Train takes a minute: `make test-long`")
def test_a_rank_of_ray_train_dies_and_training_goes_on_as_if_nothing_had_happened(db: TensorDB, folder: Path) -> None:
    from tests.ray.train import STEPS, fit

    with db.data.writer("d") as writer:
        x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
        writer.add_many(x=x, label=np.arange(64))
    query = db.data.find({"dataset": "d"}).query
    whole, killed = (fit(db, query, run, str(folder), dies=run == "killed") for run in ("whole", "killed"))
    assert sorted(label for rank in whole for row in rank for label in row["labels"]) == list(range(64))
    for one, other in zip(whole, killed, strict=True):
        assert [row["step"] for row in one] == list(range(1, STEPS + 1))
        assert [row["step"] for row in other] == [1, 2, 3, 4, 5, *range(5, STEPS + 1)]
        assert {row["step"]: row for row in other} == {row["step"]: row for row in one}


def test_nothing_that_travels_holds_a_secret_and_a_folder_stays_at_home(
    db: TensorDB, sel: Selection[Any], folder: Path
) -> None:
    address = PortableAddress.of(Warehouse(Address(uri="mongodb://me:s3cret@db1/ware?tls=true"), []))
    sinks = [write(address, "d", credentials="env:X"), annotate(address, source="m")]
    source = SelectionDatasource(sel.partitions(2), None)
    packed = pickle.dumps([sinks, source])
    assert b"s3cret" not in packed and b"me:" not in packed and b"TensorDB" not in packed
    assert source.supports_distributed_reads and sinks[0].supports_distributed_writes
    with TensorDB(folder / "w") as local:  # one in a folder serves one machine
        with local.data.writer("d") as writer:
            writer.add_many(label=[1, 2, 3])
        assert not SelectionDatasource(local.data.find().partitions(2), None).supports_distributed_reads
        assert not write(local, "d").supports_distributed_writes
        sink = annotate(local, source="m")
        read(local.data.find()).add_column("double", lambda df: df["label"] * 2).write_datasink(sink)
        assert [sample["double"] for sample in local.data.find()] == [2, 4, 6]
