"""Partitions: a selection in parts of one state of the data, which other processes read."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import mongomock
import numpy as np
import pytest

from tensordb_data import Array, ConnectError, Partition, QueryError, Scalar, Selection, TensorDB
from tensordb_data.errors import NotFoundError, SampleError, StorageError, UnsupportedError
from tensordb_data.export.portable import PortableAddress, _with_login
from tensordb_data.mongo.address import Address

N = 23


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    schema = {
        "image": Array("uint16", (2, 3)), "label": Scalar("int"), "name": Scalar("str"),
        "note": Scalar("str", optional=True), "ragged": Array("int32", (None,)),
    }  # fmt: skip
    with db.data.writer("d", schema=schema) as writer:
        for number in range(N):
            optional = {"note": f"o{number}"} if number % 2 else {}
            writer.add(
                image=np.full((2, 3), number, np.uint16), label=number, name=f"n{number}",
                ragged=np.arange(number % 3, dtype=np.int32), tags=["t"], **optional,
            )  # fmt: skip
    return db.data.find({"dataset": "d"})


def labels(parts: list[Partition]) -> list[int]:
    return [int(label) for part in parts for label in part.read()["label"]]


@pytest.mark.parametrize("n", [1, 4, N, N + 9])
def test_together_they_are_the_selection_in_its_order(sel: Selection[Any], n: int) -> None:
    parts = sel.partitions(n)
    assert len(parts) == n and sum(map(len, parts)) == N and labels(parts) == list(range(N))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and [part.number for part in parts] == list(range(n))


def test_it_reads_columns_like_a_batch_and_the_ids(sel: Selection[Any]) -> None:
    part = sel.partitions(2)[1]
    columns, (batch,) = part.read(), sel.stream(N, fields=["image", "label", "name", "ragged"], passes=1)
    assert list(columns) == ["image", "label", "name", "ragged", "_id"] == list(part.fields)
    assert columns["_id"] == [sample.id for sample in sel][N // 2 :]
    assert columns["image"].dtype == np.uint16 and (columns["image"] == batch["image"][N // 2 :]).all()
    assert columns["label"].dtype == np.int64 and columns["name"] == batch["name"][N // 2 :]
    assert [row.tolist() for row in columns["ragged"]] == [row.tolist() for row in batch["ragged"][N // 2 :]]
    assert [len(some["label"]) for some in part.batches(5)] == [5, 5, 2]
    assert np.concatenate([some["label"] for some in part.batches(5)]).tolist() == columns["label"].tolist()


def test_fields_are_those_that_are_named(db: TensorDB, sel: Selection[Any]) -> None:
    assert list(sel.partitions(2, fields=["label", "_id"])[0].read()) == ["label", "_id"]
    part = db.data.find({"dataset": "d"}, fields=["name", "note"]).partitions(1)[0]
    assert part.read()["note"][:3] == [None, "o1", None]
    assert part.to_arrow().column_names == ["_id", "dataset", "tags", "name", "note"]
    with pytest.raises(QueryError, match="no field 'labl'"):
        sel.partitions(2, fields=["labl"])


def test_tables_are_those_of_the_selection(sel: Selection[Any]) -> None:
    import pyarrow as pa

    whole = sel.to_arrow(blobs=["image"])
    assert pa.concat_tables([part.to_arrow(blobs=["image"]) for part in sel.partitions(5)]).equals(whole)
    assert sel.partitions(N + 1)[0].to_arrow().schema == sel.to_arrow().schema
    with pytest.raises(QueryError, match="there is no blob 'label'"):
        sel.partitions(1)[0].to_arrow(blobs=["label"])


def test_sort_limit_and_several_datasets(db: TensorDB, sel: Selection[Any]) -> None:
    last = db.data.find({"dataset": "d"}, sort=[("label", -1)], limit=7)
    assert labels(last.partitions(3)) == list(range(22, 15, -1))
    with db.data.writer("e") as writer:
        writer.add_many(label=[100, 101], other=[1.0, 2.0])
    parts = db.data.find(fields=["label"]).partitions(4)
    assert labels(parts) == [*range(N), 100, 101] and parts[3].to_arrow().num_rows == 7


def test_without_samples_columns_are_empty_and_have_a_type(db: TensorDB, sel: Selection[Any]) -> None:
    parts = db.data.find({"dataset": "d", "label": -1}).partitions(3)
    columns = parts[2].read()
    assert len(parts) == 3 and not sum(map(len, parts)) and parts[0] and list(parts[0].batches(4)) == []
    assert columns["image"].shape == (0, 2, 3) and columns["image"].dtype == np.uint16
    assert columns["label"].shape == (0,) and columns["name"] == columns["ragged"] == columns["_id"] == []
    assert parts[1].to_arrow().num_rows == 0 and len(db.data.find({"dataset": "d", "label": -1}).partitions()) == 1
    with pytest.raises(NotFoundError, match="no dataset 'nothing'"):
        db.data.find({"dataset": "nothing"}).partitions(2)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "8", 10**7])
def test_a_wrong_number_is_refused(sel: Selection[Any], n: Any) -> None:
    with pytest.raises(QueryError, match="n is a whole number from 1"):
        sel.partitions(n)


def test_other_wrong_arguments(db: TensorDB, sel: Selection[Any]) -> None:
    with pytest.raises(QueryError, match="nbytes"):
        sel.partitions(nbytes="many")
    with pytest.raises(QueryError, match="batch_size is a whole number"):
        sel.partitions(1)[0].batches(0)
    with pytest.raises(QueryError, match="only samples have partitions"):
        db.logs.find().partitions(2)
    with pytest.raises(UnsupportedError, match="client="):
        mocked = TensorDB(client=mongomock.MongoClient())
        with mocked.data.writer("d") as writer:
            writer.add(label=1)
        mocked.data.find({"dataset": "d"}).partitions(2)


def test_without_a_number_they_are_of_about_so_many_bytes(sel: Selection[Any]) -> None:
    parts = sel.partitions(nbytes=1000)
    assert 1 < len(parts) < N and max(part.nbytes for part in parts) < 1500 and labels(parts) == list(range(N))
    assert len(sel.partitions()) == 1 and sel.partitions()[0].nbytes > N * 12


def test_they_are_frozen_small_and_compare_by_value(sel: Selection[Any]) -> None:
    part = sel.partitions(2)[0]
    packed = pickle.dumps(part)
    copy: Partition = pickle.loads(packed)  # noqa: S301
    assert len(packed) < 3000 and copy == part and hash(copy) == hash(part) and repr(copy) == repr(part)
    assert "Partition 0 of 2: 11 samples" in repr(part)
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.count = 3  # type: ignore[misc]


def test_all_are_of_one_state_of_the_data(db: TensorDB, sel: Selection[Any]) -> None:
    parts = sel.partitions(3)
    before = sel.to_arrow()
    sel.update({"$set": {"label": 99, "name": "new"}})
    with db.data.writer("d") as writer:
        writer.add(image=np.zeros((2, 3), np.uint16), label=7, name="late", ragged=np.zeros(1, np.int32))
    db.data.schema("d").rename(name="title")
    db.data.compact("d")
    assert labels(parts) == list(range(N)) and parts[2].read()["name"][-1] == f"n{N - 1}"
    assert parts[0].to_arrow().equals(before.slice(0, len(parts[0])))


def test_deleted_samples_are_left_out_and_said_so(
    db: TensorDB, sel: Selection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    parts = sel.partitions(3)
    db.data.find({"dataset": "d", "label": {"$in": [1, 2, 22]}}).delete()
    with caplog.at_level(logging.WARNING, "tensordb_data"):
        assert parts[0].read()["label"].tolist() == [0, 3, 4, 5, 6]
    (record,) = [record for record in caplog.records if record.name == "tensordb_data"]
    assert "2 of the 7 samples of partition 0 of 3 were deleted" in record.getMessage()
    assert parts[0].to_arrow(blobs=["image"]).num_rows == 5 and len(parts[0]) == 7
    sel.delete()
    assert len(parts[1].read()["label"]) == 0 == parts[1].to_arrow().num_rows
    db.data.drop("d")
    assert len(parts[1].read()["label"]) == 0


def test_blobs_in_documents(db: TensorDB) -> None:
    with db.data.writer("live", live=True) as writer:
        writer.add_many(x=np.arange(6, dtype=np.float32).reshape(3, 2), text=[b"a", b"b", b"c"])
    parts = db.data.find({"dataset": "live"}).partitions(2)
    for _ in range(2):
        assert np.concatenate([part.read()["x"] for part in parts]).ravel().tolist() == list(range(6))
        tables = [part.to_arrow(blobs=["text"])["text"].to_pylist() for part in parts]
        assert tables == [[b"a"], [b"b", b"c"]]
        db.data.compact("live")


def test_a_blob_that_was_replaced_is_the_earlier_or_an_error(db: TensorDB) -> None:
    db.data.ingest([{"k": 1, "x": b"old"}, {"k": 2, "x": b"same"}], "d", key="k")
    part = db.data.find({"dataset": "d"}).partitions(1)[0]
    db.data.ingest([{"k": 1, "x": b"new"}, {"k": 2, "x": b"same"}], "d", key="k")
    assert [bytes(x) for x in part.read()["x"]] == [b"old", b"same"]
    assert part.to_arrow(blobs=["x"])["x"].to_pylist() == [b"old", b"same"]
    db.database["data"].update_one({"k": 1}, {"$unset": {"_tdb.b.x.was": 1}})
    with pytest.raises(StorageError, match=r"field 'x': this blob was removed or replaced since .*make the partitions"):
        part.to_arrow(blobs=["x"])


def read_labels(part: Partition) -> list[int]:
    return [int(label) for label in part.read()["label"]]


def test_spawned_processes_read_them(sel: Selection[Any]) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(read_labels, sel.partitions(3))
    assert [label for some in found for label in some] == list(range(N))


def test_a_warehouse_in_a_folder_is_read_elsewhere_on_this_machine_only(tmp_path: Path, warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir / "w") as db:
        with db.data.writer("d") as writer:
            writer.add_many(label=[1, 2, 3])
        part = db.data.find({"dataset": "d"}).partitions(1)[0]
        (tmp_path / "part").write_bytes(pickle.dumps(part))
        code = f"import pickle; print(pickle.load(open({str(tmp_path / 'part')!r}, 'rb')).read()['label'].tolist())"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[1, 2, 3]"
    text = part.state.address.text.replace(str(warehouse_dir / "w"), str(tmp_path / "gone"))
    moved = dataclasses.replace(part, state=dataclasses.replace(part.state, address=PortableAddress(text, False)))
    with pytest.raises(ConnectError, match=r"this machine has no folder .*gone"):
        moved.read()


def test_they_hold_no_password_and_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.warehouse.context import Warehouse

    uri = "mongodb://me:s3cret%40pw@db1:27017,db2/ware?replicaSet=rs0"
    portable = PortableAddress.of(Warehouse(Address(uri=uri, database="ware"), []))
    packed = pickle.dumps(portable)
    assert b"s3cret" not in packed and portable.needs_login and "s3cret" not in f"{portable!r} {portable}"
    there: PortableAddress = pickle.loads(packed)  # noqa: S301
    monkeypatch.delenv("TENSORDB", raising=False)
    with pytest.raises(ConnectError, match=r"do not travel, and \$TENSORDB is not set"):
        there.open()
    with pytest.raises(ConnectError, match=r"\$OTHER is not set"):
        there.open("env:OTHER")
    monkeypatch.setenv("OTHER", "mongodb://me:s3cret%40pw@elsewhere/ware")
    with pytest.raises(ConnectError, match=r"expected in \$OTHER the address .*db1.*found .*elsewhere") as error:
        there.open("env:OTHER")
    assert "s3cret" not in str(error.value)
    with pytest.raises(ConnectError, match="credentials is an address"):
        there.open(3)  # type: ignore[arg-type]
    monkeypatch.setenv("TENSORDB", uri)
    opened = there.open()
    assert opened.address.uri == uri and opened.address.database == "ware" and there.open() is opened
    assert there.open(uri) is opened and _with_login(Address(uri=str(Address(uri=uri))), None) == uri


def test_what_another_tool_has_written_is_named(db: TensorDB, sel: Selection[Any]) -> None:
    data, (first, second) = db.database["data"], sel.head(2)
    data.update_one({"_id": first.id}, {"$set": {"_tdb.b": [1]}})
    data.update_one({"_id": second.id}, {"$set": {"_tdb.b.image": "x"}})
    data.insert_one({"dataset": "no such dataset", "label": 1, "_tdb": {"p": db.project, "s": 1}})
    parts = sel.partitions(N)
    for number, one in enumerate((first, second)):
        with pytest.raises(SampleError, match=str(one.id)):
            parts[number].read()
        assert parts[number].to_arrow(blobs=["image"])["image"].to_pylist() == [None]
    assert labels(parts[2:]) == list(range(2, N)) == labels(db.data.find(fields=["label"]).partitions(2))[2:]
