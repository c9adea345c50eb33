"""Tables: the kinds of columns, no lost digits, and what each format does that breaks naive readers."""

from __future__ import annotations

import bz2
import datetime as dt
import decimal
import gzip
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from tensordb_data import Array, Bytes, Image, QueryError, Scalar, SchemaError, TensorDB, Text


def schema(db: TensorDB, name: str = "d") -> dict[str, Any]:
    found = db.data.schema(name)
    assert found is not None
    return dict(found)


def column(db: TensorDB, field: str, name: str = "d") -> list[Any]:
    return [sample.get(field) for sample in db.data.find({"dataset": name}).all()]


def png(value: int = 0, shape: tuple[int, ...] = (4, 4, 3)) -> bytes:
    return bytes(cv2.imencode(".png", np.full(shape, value, np.uint8))[1])


# CSV


CELLS: list[tuple[list[str], str, list[Any]]] = [
    (["007", "123"], "str", ["007", "123"]),
    (["12345678901234567890", "1"], "str", ["12345678901234567890", "1"]),
    (["9223372036854775808", "1"], "str", ["9223372036854775808", "1"]),
    (["9223372036854775807", "-1"], "int", [2**63 - 1, -1]),
    (["9007199254740993", "0.5"], "str", ["9007199254740993", "0.5"]),
    (["1", "2.5"], "float", [1.0, 2.5]),
    (["1e400", "1"], "str", ["1e400", "1"]),
    (["Nan", "Inf"], "str", ["Nan", "Inf"]),
    (["nan", "1.5"], "float", [math.nan, 1.5]),
    (["Nan", "Anna"], "str", ["Nan", "Anna"]),
    (["+49151", "1"], "str", ["+49151", "1"]),
    (["ok", "true", "0"], "str", ["ok", "true", "0"]),
    (["true", "False"], "bool", [True, False]),
    (["true", "0"], "str", ["true", "0"]),
    (["-0", "1"], "float", [-0.0, 1.0]),
    (["1_000", "2"], "str", ["1_000", "2"]),
    (["NA", "x"], "str", ["NA", "x"]),
    (["1.", ".5", "1e3", "1E-3"], "float", [1.0, 0.5, 1000.0, 0.001]),
    (["", "", "3"], "int", [None, None, 3]),
    (["1"] * 3000 + ["x"], "str", ["1"] * 3000 + ["x"]),
]


def test_kinds_of_csv(db: TensorDB, tmp_path: Path) -> None:
    for case, (cells, kind, values) in enumerate(CELLS):
        file, name = tmp_path / f"{case}.csv", f"d{case}"
        file.write_text("n,x\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
        db.data.ingest(file, name)
        assert schema(db, name)["x"] == Scalar(kind, optional="" in cells), cells[:3]
        found = [sample.get("x") for sample in db.data.find({"dataset": name}, sort=[("n", 1)]).all()]
        assert [repr(value) for value in found] == [repr(value) for value in values]


def test_shapes_of_csv(db: TensorDB, tmp_path: Path) -> None:
    text = '\ufeffa,b,c\r\n1,"x, ""y""\nz",2\r\n\r\n2,' + "w" * 200_000 + ",3\r\n"
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert db.data.ingest(tmp_path / "t.csv", "d").added == 2
    assert column(db, "b") == ['x, "y"\nz', "w" * 200_000]
    (tmp_path / "t.tsv").write_text("a\tb\n1\tx,y\n")
    db.data.ingest(tmp_path / "t.tsv", "tsv")
    assert column(db, "b", "tsv") == ["x,y"]
    (tmp_path / "l.csv").write_bytes("a\nétä\n".encode("latin-1"))
    with pytest.raises(SchemaError, match=r"expected UTF-8.*encoding='latin-1'"):
        db.data.ingest(tmp_path / "l.csv", "l")
    db.data.ingest(tmp_path / "l.csv", "l", encoding="latin-1")
    assert column(db, "a", "l") == ["étä"]
    (tmp_path / "u.csv").write_bytes("a\nx\n".encode("utf-16"))
    with pytest.raises(SchemaError, match="expected UTF-8"):
        db.data.ingest(tmp_path / "u.csv", "u")
    db.data.ingest(tmp_path / "u.csv", "u", encoding="utf-16")
    assert column(db, "a", "u") == ["x"]


def test_a_row_that_is_too_large_is_named(db: TensorDB, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\nx\n" + "y" * (17 << 20) + "\nz\n")
    report = db.data.ingest(tmp_path / "t.csv", "d")
    assert (
        report.added == 2
        and report.failed[0].where == "t.csv, row 1"
        and "types={'text': Text()}" in report.failed[0].why
    )
    assert db.data.ingest(tmp_path / "t.csv", "text", types={"a": Text()}).added == 3
    (tmp_path / "q.csv").write_text('a,b\n1,"x\n2,y\n')
    with pytest.raises(SchemaError, match="unexpected end of data"):
        db.data.ingest(tmp_path / "q.csv", "q")


def test_csv_with_paths_of_images(db: TensorDB, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        (tmp_path / f"photos/{i}.png").write_bytes(png(i))
    (tmp_path / "secret.png").write_bytes(png())
    rows = "1,SUV,01,0.png\n2,van,02,1.png\n3,x,03,none.png\n4,y,04,../secret.png\n5,z,05,\n"
    (tmp_path / "labels.csv").write_text("vin,class,zip,path,\n" + rows.replace("\n", ",0\n"))
    report = db.data.ingest(
        tmp_path / "labels.csv", "cars", key="vin", rename={"class": "label"}, skip=[""], types={"zip": str},
        files={"path": Image()}, base=tmp_path / "photos",
    )  # fmt: skip
    assert report.added == 3 and [where for where, _ in report.failed] == ["labels.csv, row 2", "labels.csv, row 3"]
    assert "No such file" in report.failed[0].why and 'base="/"' in report.failed[1].why
    assert schema(db, "cars") == {
        "vin": Scalar("int"), "label": Scalar("str"), "zip": Scalar("str"), "path": Image(optional=True),
    }  # fmt: skip
    assert db.data.find({"vin": 2}).first()["path"][0, 0, 0] == 1
    (tmp_path / "photos/1.png").write_bytes(png(9))
    assert db.data.ingest(tmp_path / "labels.csv", "cars", key="vin", rename={"class": "label"}, skip=[""],
                          files={"path": Image()}, base=tmp_path / "photos").updated == 1  # fmt: skip


# JSON


def test_jsonl(db: TensorDB, tmp_path: Path) -> None:
    lines = [
        '\ufeff{"n": 1, "day": "2024-01-02", "f": 1, "mixed": 1, "b": true, "list": [1, 2]}', "", "   ",
        '{"n": 2, "day": "2024-01-03", "f": 0.5, "mixed": "x", "b": false, "list": [],', '"more": {"a": null}}',
        '{"n": 3, "day": "x", "f": NaN, "mixed": null, "b": true, "list": [1.5]}',
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    report = db.data.ingest(tmp_path / "t.jsonl", "d")
    assert report.added == 3 and report.notes == ["t.jsonl has NaN, which is no JSON, as a number"]
    assert schema(db) == {
        "n": Scalar("int"), "day": Scalar("str"), "f": Scalar("float"), "mixed": Scalar("json", optional=True),
        "b": Scalar("bool"), "list": Scalar("json"), "more": Scalar("json", optional=True),
    }  # fmt: skip
    assert column(db, "mixed") == [1, "x", None] and column(db, "more") == [None, {"a": None}, None]
    (tmp_path / "l.json").write_text(json.dumps([{"a": i} for i in range(3)], indent=2))
    assert db.data.ingest(tmp_path / "l.json", "l").added == 3


MALFORMED = [
    ('{"a": 1}\n{"a": 18446744073709551615}\n', "line 2: expected integers of 64 bits"),
    ('{"a": 1, "a": 2}\n', "line 1: expected different keys, found 'a' twice"),
    ('{"a": 1}\n{"a": }\n', "line 2: expected JSON"),
    ('{"a": 1}\n[1]\n', "line 2: expected an object"),
    ('{"a": 1} {"a": 2}\n', "line 1: expected one value a line"),
    ('{"a": 1}\n{"a": \n', "line 2: expected JSON, found a value that does not end"),
    ("", "found none"),
    ("[" * 100_000, "nested too deep"),
]


def test_malformed_json(db: TensorDB, tmp_path: Path) -> None:
    for text, says in MALFORMED:
        (tmp_path / "t.jsonl").write_text(text)
        with pytest.raises(SchemaError, match=says):
            db.data.ingest(tmp_path / "t.jsonl", "d")


# Arrow


def test_types_of_arrow(db: TensorDB, tmp_path: Path) -> None:
    day = dt.date(2024, 2, 3)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    columns = {
        "decimal": pa.array([decimal.Decimal("1.50"), decimal.Decimal("-2.25")]),
        "date": pa.array([day, None]),
        "time": pa.array([dt.time(0, 0, 1), dt.time(0, 0, 2)], pa.time32("s")),
        "took": pa.array([1, 2], pa.duration("ms")),
        "stamp": pa.array([1_000_000, 2_000_000], pa.timestamp("us")),
        "zone": pa.array([1000, 2000], pa.timestamp("ms", "Europe/Berlin")),
        "half": pa.array([np.float16(0.5), np.float16(2)], pa.float16()),
        "single": pa.array([0.5, 2], pa.float32()),
        "u64": pa.array([2**63 - 1, 1], pa.uint64()),
        "kind": pa.array(["u", "v"]).dictionary_encode(),
        "large": pa.array(["u", None], pa.large_string()),
        "view": pa.array(["u", "a long text beyond the view"], pa.string_view()),
        "list": pa.array([[1], [2, 3]]),
        "large_list": pa.array([[1], [2, 3]], pa.large_list(pa.int64())),
        "long": pa.array([list(range(100)), list(range(90))], pa.list_(pa.int32())),
        "fixed": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "gaps": pa.array([[1, 2], None], pa.list_(pa.int16(), 2)),
        "matrix": pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], pa.list_(pa.list_(pa.int64(), 2), 2)),
        "tensor": tensor,
        "struct": pa.array([{"a": 1, "b": [day]}, {"a": 2, "b": []}]),
        "map": pa.array([[("x", 1)], []], pa.map_(pa.string(), pa.int64())),
        "none": pa.nulls(2),
        "raw": pa.array([b"", b"\x01"]),
        "image": pa.array([png(1), png(2)], pa.large_binary()),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert db.data.ingest(tmp_path / "t.parquet", "d").failed == []
    assert schema(db) == {
        "decimal": Scalar("str"), "date": Scalar("datetime", optional=True),
        "time": Scalar("int"), "took": Scalar("int"), "stamp": Scalar("datetime"),
        "zone": Scalar("datetime"), "half": Scalar("float"), "single": Scalar("float"),
        "u64": Scalar("int"), "kind": Scalar("str"), "large": Scalar("str", optional=True), "view": Scalar("str"),
        "list": Scalar("json"), "large_list": Scalar("json"), "long": Array("int32", (None,)),
        "fixed": Array("float32", (2,)), "gaps": Array("int16", (2,), optional=True), "matrix": Array("int64", (2, 2)),
        "tensor": Array("float32", (2, 3)), "struct": Scalar("json"), "map": Scalar("json"),
        "none": Scalar("json", optional=True), "raw": Bytes(), "image": Image(),
    }  # fmt: skip
    one, two = db.data.find({"dataset": "d"}).all()
    assert (one["decimal"], one["date"], two["took"]) == ("1.50", dt.datetime(2024, 2, 3), 2)
    assert two["stamp"] == dt.datetime(1970, 1, 1, 0, 0, 2) and one["u64"] == 2**63 - 1
    assert one["struct"] == {"a": 1, "b": [dt.datetime(2024, 2, 3)]} and one["map"] == {"x": 1}
    np.testing.assert_array_equal(two["tensor"], np.arange(6, 12, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(two["matrix"], [[5, 6], [7, 8]])
    assert two["long"].tolist() == list(range(90)) and "gaps" not in two
    assert db.data.ingest(tmp_path / "t.parquet", "d").unchanged == 2
    pyarrow.feather.write_feather(pa.table(columns).drop(["tensor"]), tmp_path / "t.feather")
    assert db.data.ingest(tmp_path / "t.feather", "feather").added == 2


def test_a_permuted_tensor(db: TensorDB) -> None:
    values = np.arange(12, dtype=np.int32).reshape(2, 3, 2)
    kind = pa.fixed_shape_tensor(pa.int32(), (3, 2), permutation=(1, 0))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6)
    table = pa.table({"x": pa.ExtensionArray.from_storage(kind, storage)})
    db.data.ingest(table, "d")
    np.testing.assert_array_equal(column(db, "x")[1], values[1].T)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (pa.array([{"a.b": 1}]), "without '.'"),
        (pa.array([1, 2**63], pa.uint64()), "expected an integer of 64 bits"),
    ],
)
def test_rows_that_cannot_be_stored(db: TensorDB, values: Any, says: str) -> None:
    assert says in db.data.ingest(pa.table({"x": values}), "d").failed[-1].why


def test_times_that_would_lose_digits(db: TensorDB) -> None:
    with pytest.raises(SchemaError, match=r"row 0: expected a time in whole milliseconds.*types="):
        db.data.ingest(pa.table({"x": pa.array([1, 2], pa.timestamp("us"))}), "d")


def test_types_that_a_user_gives(db: TensorDB) -> None:
    table = pa.table({
        "d": pa.array([decimal.Decimal("1.5")]), "t": pa.array([1], pa.timestamp("ns")), "n": [1], "l": [[1, 2]],
    })  # fmt: skip
    db.data.ingest(table, "d", types={"d": float, "t": str, "n": float, "l": Array("int64", (None,))})
    assert (column(db, "d"), column(db, "n"), column(db, "t")) == ([1.5], [1.0], ["1970-01-01 00:00:00.000000001"])


def test_hive_folders_and_files_of_one_table(db: TensorDB, tmp_path: Path) -> None:
    for year, month, values in ((2023, "01", [1, 2]), (2024, "02", [3]), (2024, "__HIVE_DEFAULT_PARTITION__", [4])):
        folder = tmp_path / f"t/year={year}/month={month}"
        folder.mkdir(parents=True)
        pq.write_table(
            pa.table({"x": values, "y": [0.5] * len(values)} if year == 2023 else {"x": values}), folder / "a.parquet"
        )
    (tmp_path / "t/_SUCCESS").touch()
    report = db.data.ingest(tmp_path / "t", "d")
    assert report.failed == [] and report.ignored == {"others": 1}
    assert schema(db) == {
        "x": Scalar("int"), "y": Scalar("float", optional=True),
        "year": Scalar("int"), "month": Scalar("str", optional=True),
    }  # fmt: skip
    found = {(s["x"], s["year"], s.get("month")) for s in db.data.find({"dataset": "d"})}
    assert found == {(1, 2023, "01"), (2, 2023, "01"), (3, 2024, "02"), (4, 2024, None)}
    pq.write_table(pa.table({"x": ["text"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "one.parquet")
    with pytest.raises(SchemaError, match=r"column 'x' is Scalar\('str'\) in other.parquet and Scalar\('int'\) in one"):
        db.data.ingest(str(tmp_path / "o*.parquet").replace("o*", "{other,one}"), "e")
    (tmp_path / "bad").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "bad/good.parquet")
    (tmp_path / "bad/bad.parquet").write_bytes(b"PAR1 and no more")
    report = db.data.ingest(tmp_path / "bad", "bad")
    assert report.added == 1 and report.failed[0].where == "bad.parquet"


def hub(folder: Path) -> None:
    """Parquet as Hugging Face writes it."""
    features = {
        "image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ape", "cat"]},
        "kind": {"_type": "ClassLabel", "names": ["x"]},
    }  # fmt: skip
    media = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": png(1), "path": "a.png"}, None, {"bytes": None, "path": "b.png"}, {"bytes": b"no", "path": None}]
    table = pa.table({
        "image": pa.array(rows, media), "label": pa.array([1, -1, 0, 1]), "kind": pa.array([0, 0, 0, 0]),
    })  # fmt: skip
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir()
    pq.write_table(table.slice(0, 3), folder / "train-00000-of-00001.parquet")
    pq.write_table(table.slice(3), folder / "test-00000-of-00001.parquet")
    (folder / "b.png").write_bytes(png(2))


def test_parquet_of_hugging_face(db: TensorDB, tmp_path: Path) -> None:
    hub(tmp_path / "hub")
    report = db.data.ingest(str(tmp_path / "hub/*.parquet"), "d")
    assert report.added == 3 and report.failed[0].where == "test-00000-of-00001.parquet, row 0"
    assert schema(db) == {
        "image": Image("rgb", optional=True), "label": Scalar("int"), "class": Scalar("str", optional=True),
        "kind": Scalar("int"), "kind_class": Scalar("str"), "split": Scalar("str"),
    }  # fmt: skip
    found = [(s["label"], s.get("class"), s["split"], "image" in s) for s in db.data.find({"dataset": "d"})]
    assert found == [(1, "cat", "train", True), (-1, None, "train", False), (0, "ape", "train", True)]
    assert column(db, "image")[2][0, 0, 0] == 2


def test_gray_images_of_hugging_face_stay_gray(db: TensorDB) -> None:
    media = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    gray, colour = ({"bytes": png(1, shape), "path": None} for shape in ((4, 4), (4, 4, 3)))
    db.data.ingest(pa.table({"image": pa.array([gray] * 3, media)}), "gray")
    db.data.ingest(pa.table({"image": pa.array([gray] * 3 + [colour], media)}), "mixed")
    assert schema(db, "gray")["image"] == Image("gray") and schema(db, "mixed")["image"] == Image("rgb")
    other = pa.array([{"bytes": b"%PDF-1.7", "path": "a.pdf"}], media)
    assert db.data.ingest(pa.table({"text": other}), "other").added == 1 and schema(db, "other")["text"] == Bytes()


def test_what_hugging_face_has_saved(db: TensorDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that watches bars
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ape", "cat"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(6)], "label": [0, 1, 0, 1, 0, -1]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    picked = whole.select([5, 0, 3])
    assert db.data.ingest(picked, "memory").added == 3
    assert [(s["label"], s.get("class")) for s in db.data.find({"dataset": "memory"})] == [
        (-1, None),
        (0, "ape"),
        (1, "cat"),
    ]
    assert db.data.ingest(whole.shuffle(seed=0), "memory").added == 3
    assert column(db, "image", "memory")[0][0, 0, 0] == 5
    splits = datasets.DatasetDict({"train": whole.select(range(4)), "test": whole.select(range(4, 6))})
    assert db.data.ingest(splits, "splits").added == 6
    assert column(db, "split", "splits") == ["train"] * 4 + ["test"] * 2
    splits.save_to_disk(tmp_path / "saved")
    assert db.data.ingest(tmp_path / "saved", "saved").added == 6
    assert sorted(column(db, "split", "saved")) == ["test"] * 2 + ["train"] * 4
    picked.save_to_disk(tmp_path / "one")
    assert db.data.ingest(tmp_path / "one", "memory").unchanged == 3


# In memory


def test_frames(db: TensorDB) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({
        "id": pandas.array([2**53 + 1, None], "Int64"), "x": [0.5, math.nan], "s": ["a", None],
        "c": pandas.Categorical(["u", "v"]), "t": pandas.to_datetime(["2024-01-01", None]),
    })  # fmt: skip
    assert db.data.ingest(frame, "d").added == 2
    assert schema(db) == {
        "id": Scalar("int", optional=True), "x": Scalar("float"), "s": Scalar("str", optional=True),
        "c": Scalar("str"), "t": Scalar("datetime", optional=True),
    }  # fmt: skip
    assert column(db, "id") == [2**53 + 1, None] and math.isnan(column(db, "x")[1])
    assert db.data.ingest(frame.iloc[::-1], "d").unchanged == 2
    assert db.data.ingest(frame.set_index("s"), "d").unchanged == 2
    mixed = pandas.DataFrame({"o": [1, "x", None, [2]]})
    with pytest.raises(SchemaError, match=r"column 'o', row 1: expected int, as before, found str.*types="):
        db.data.ingest(mixed, "o")
    db.data.ingest(mixed, "o", types={"o": "json"})
    assert column(db, "o", "o") == [1, "x", None, [2]]

    class Stream:
        """As Polars and DuckDB are."""

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return pa.table({"a": [1, 2]}).__arrow_c_stream__(requested_schema)

    assert db.data.ingest(Stream(), "stream").added == 2
    assert db.data.ingest(pa.table({"a": [2, 1]}).to_reader(), "stream").unchanged == 2
    assert db.data.ingest({"a": np.array([1, 2]), "b": ["x", "y"]}, "columns").added == 2


def test_iterables(db: TensorDB) -> None:
    rows = [{"n": 1, "x": np.zeros(3)}, {"n": 2.5, "x": np.ones(3)}, {"n": 3, "x": np.ones(3), "s": None}]
    assert db.data.ingest(iter(rows), "d").added == 3
    assert schema(db) == {"n": Scalar("float"), "x": Array("float64", (3,)), "s": Scalar("json", optional=True)}
    assert db.data.ingest(iter(rows), "d").unchanged == 3
    assert db.data.ingest([(png(), 1)] * 2, "t", names=["image", "label"]).added == 2
    report = db.data.ingest([(1, 2), (1,), {"a": 3}, 4], "n", names=["a", "b"])
    assert (report.added, [where for where, _ in report.failed]) == (2, ["row 1", "row 3"])
    with pytest.raises(SchemaError, match="a tuple of 2 parts; name them with names="):
        db.data.ingest([(1, 2)], "u")
    with pytest.raises(SchemaError, match="expected rows, found none"):
        db.data.ingest([], "u")
    with pytest.raises(SchemaError, match="expected a path, a table or an iterable of dicts, found int"):
        db.data.ingest(3, "u")
    with pytest.raises(SchemaError, match=r"column 'a', row 1: expected Scalar\('int'\).*types="):
        db.data.ingest([{"a": 1}, {"a": "x"}], "u")
    with pytest.raises(QueryError, match="prune=True needs source_id="):
        db.data.ingest([{"a": 1}], "u", prune=True)
    db.data.ingest([{"a": 1}, {"a": 2}], "p", source_id="s", key="a")
    assert db.data.ingest([{"a": 2}], "p", source_id="s", key="a", prune=True).pruned == 1


def test_datasets_of_torch(db: TensorDB, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import Dataset, IterableDataset

    class Map(Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 5

        def __getitem__(self, i: int) -> Any:
            if i == 3:
                raise OSError("cannot be read")
            return torch.full((2, 2), i), i

    class Stream(IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Any:
            return ({"x": torch.full((2,), i)} for i in range(4))

    report = db.data.ingest(Map(), "map", names=["image", "label"])
    assert report.added == 4 and report.failed == [("row 3", "OSError: cannot be read")]
    assert schema(db, "map")["image"] == Array("int64", (2, 2))
    assert db.data.ingest(Stream(), "stream").added == 4
    PIL = pytest.importorskip("PIL.Image")
    (tmp_path / "x.png").write_bytes(png(7))
    opened = PIL.open(tmp_path / "x.png")
    report = db.data.ingest([{"image": opened}], "pil")
    assert db.data.find({"dataset": "pil"}).first().encoded("image") == png(7) and report.notes == []
    report = db.data.ingest([{"image": opened.convert("RGB")}], "arrays")
    assert schema(db, "arrays")["image"] == Array("uint8", (4, 4, 3)) and "arrays" in report.notes[0]


# Metadata of folders


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_beside_images(db: TensorDB, tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [{"file_name": "a/0.png", "text": "zero", "mask_file_name": "m/0.png"},
                                  {"file_name": "1.png", "text": "one", "mask_file_name": None},
                                  {"file_name": "gone.png", "text": "?", "mask_file_name": None}]  # fmt: skip
    for name, value in (
        ("train/a/0.png", 0),
        ("train/1.png", 1),
        ("train/2.png", 2),
        ("train/m/0.png", 9),
        ("val/3.png", 3),
    ):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(png(value))

    def write() -> None:
        file = tmp_path / f"p/train/metadata.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        elif kind == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            file.write_text(
                "file_name,text,mask_file_name\n"
                + "".join(",".join(value or "" for value in row.values()) + "\n" for row in rows)
            )

    write()
    report = db.data.ingest(tmp_path / "p", "d")
    assert sorted(where for where, _ in report.failed) == ["train/2.png", "train/gone.png", "val/3.png"]
    found = {(s["path"], s["text"], s["split"], "mask" in s) for s in db.data.find({"dataset": "d"})}
    assert found == {("train/a/0.png", "zero", "train", True), ("train/1.png", "one", "train", False)}
    assert "class" not in schema(db) and db.data.find({"text": "zero"}).first()["mask"][0, 0, 0] == 9
    rows[1]["text"] = "uno"
    write()
    assert (again := db.data.ingest(tmp_path / "p", "d")).updated == 1 and again.unchanged == 1


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress,
}  # fmt: skip


@pytest.mark.parametrize("end", COMPRESS)
def test_compressed_text_is_expanded(db: TensorDB, tmp_path: Path, end: str) -> None:
    compress = COMPRESS[end]
    texts = {"train.csv": "n,zip\n1,007\n2,08\n", "test.TSV": "n\tzip\n3\t1,2\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.{end}").write_bytes(compress(text.encode()))
    report = db.data.ingest(tmp_path, "d")
    assert (report.added, report.failed) == (3, [])
    assert [(row["n"], row["zip"], row["split"]) for row in db.data.find({"dataset": "d"}, sort=[("n", 1)])] == [
        (1, "007", "train"), (2, "08", "train"), (3, "1,2", "test")
    ]  # fmt: skip
    lines = "".join(json.dumps({"n": n, "text": f"row {n} " * 9}) + "\n" for n in range(500))
    path = tmp_path / f"rows.jsonl.{end}"
    path.write_bytes(compress(lines.encode()))
    assert db.data.ingest(path, "lines").added == 500
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20] + bytes(30) + whole[50:]):
        path.write_bytes(damaged)
        with pytest.raises(SchemaError, match=r"rows\.jsonl"):
            db.data.ingest(path, "other")
    assert db.data.find({"dataset": "other"}).count() == 0


def test_the_encoding_of_a_mark_is_said(db: TensorDB, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,ü\n", encoding="utf-16")
    with pytest.raises(SchemaError, match="encoding='utf-16'"):
        db.data.ingest(tmp_path / "a.csv", "d")
    assert db.data.ingest(tmp_path / "a.csv", "d", encoding="utf-16").added == 1 and column(db, "b") == ["ü"]
