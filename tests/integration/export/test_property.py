"""Whatever a dataset holds, each format gives back the same scalars and the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Bytes, Image, Scalar, TensorDB, Text
from tests.integration.export.samples import contents, picture

SCHEMA = {
    "image": Image(), "raw": Bytes(optional=True), "note": Text(optional=True), "grid": Array("float32", (2,)),
    "n": Scalar("int", optional=True), "x": Scalar("float", optional=True), "s": Scalar("str", optional=True),
    "b": Scalar("bool", optional=True), "j": Scalar("json", optional=True), "split": Scalar("str"),
}  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0.$"), max_size=4)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
ROW = st.fixed_dictionaries(
    {
        "image": st.sampled_from([picture(0), picture(1), picture(2, ".jpg")]),
        "grid": st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2),
        "split": st.sampled_from(["train", "test", "../x"]),
    },
    optional={
        "raw": st.binary(max_size=40), "note": TEXT, "n": st.integers(-(2**63), 2**63 - 1),
        "x": FLOATS, "s": TEXT, "b": st.booleans(), "j": JSON,
    },
)  # fmt: skip


def same(found: Any, wanted: Any) -> bool:
    """Equal to the last bit, and of one type."""
    return repr(found) == repr(wanted)


@pytest.mark.parametrize("format", ["parquet", "jsonl", "folder", "webdataset", "mds"])
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(ROW, min_size=1, max_size=5), shard_bytes=st.sampled_from([1, 700, None]))
def test_what_goes_in_comes_out(
    db: TensorDB, tmp_path: Path, format: str, rows: list[dict[str, Any]], shard_bytes: int | None
) -> None:
    if db.data.schema("x") is not None:
        db.data.drop("x")
    with db.data.writer("x", schema=SCHEMA) as writer:
        for row in rows:
            writer.add(**{**row, "grid": np.array(row["grid"], np.float32)})
    fields = [name for name in SCHEMA if format != "mds" or name not in ("raw", "note")]
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    db.data.find().export(out, format, fields=["_id", *fields], shard_bytes=shard_bytes)
    stored = {str(sample.id): sample for sample in db.data.find()}
    found = {row["_id"]: row for row in contents(out, format)}
    assert found.keys() == stored.keys()
    for id, row in found.items():
        sample = stored[id]
        assert row["image"] == sample.encoded("image")
        assert np.array(row["grid"], np.float32).tobytes() == sample["grid"].tobytes()
        for name in fields:
            if name in ("image", "grid"):
                continue
            value = row.get(name)
            if format == "parquet" and name == "j" and value is not None:
                value = json.loads(value)
            wanted = sample.get(name)
            assert same(_plain(value), _plain(wanted)), name


def _plain(value: Any) -> Any:
    """A value with keys in one order, and integers of one class."""
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return list(map(_plain, value))
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
