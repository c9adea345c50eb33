"""The fast reader of server replies gives what the ordinary one gives, or steps aside."""

from __future__ import annotations

from typing import Any

import bson
import numpy as np
from bson import ObjectId
from bson.int64 import Int64
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.schema import Array, Scalar
from tensordb_data.schema.schema import Schema
from tensordb_data.stream.plan.bson_columns import table_from_bson
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, table_from_docs

SCHEMA = Schema(
    {
        "image": Array("uint8", (2,)),
        "mask": Array("uint8", (2,), optional=True),
        "label": Scalar("int", optional=True),
        "score": Scalar("float"),
        "seen": Scalar("bool"),
        "split": Scalar("str"),
    }
)
LAYOUT = FieldLayout.choose(("image", "mask", "label", "score", "seen", "split", "_id"), {"d": SCHEMA, "e": SCHEMA})

segments = st.sampled_from([ObjectId(f"{number:024x}") for number in range(3)])
refs = st.builds(
    lambda k, o, n, z: {"k": k, "o": o, "n": n, **({"z": True} if z else {})},
    segments, st.integers(0, 2**40), st.integers(0, 9), st.booleans(),
)  # fmt: skip
inline = st.builds(
    lambda d, x, z: {"d": d, "n": len(d), "x": x, **({"z": True} if z else {})},
    st.one_of(st.binary(min_size=3, max_size=3), st.binary(max_size=4)),
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([False, False, True]),
)  # fmt: skip
labels = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 9), st.integers(0, 9).map(Int64))
blobs = st.fixed_dictionaries({"image": st.one_of(refs, inline)}, optional={"mask": st.one_of(refs, inline)})
documents = st.builds(
    lambda id_, label, score, seen, split, dataset, blobs, sequence, drop: {
        key: value
        for key, value in {
            "_id": id_, "dataset": dataset, "label": label, "score": score, "seen": seen, "split": split,
            "_tdb": {"s": sequence, "b": blobs},
        }.items()
        if key != drop
    },
    st.binary(min_size=12, max_size=12).map(ObjectId), labels, st.floats(), st.booleans(), st.text(max_size=3),
    st.sampled_from("de"), blobs, st.integers(1, 2**40),
    st.sampled_from([None, None, None, "label"]),
)  # fmt: skip


def encoded(docs: list[dict[str, Any]]) -> bytes:
    return b"".join(map(bson.encode, docs))


def same(one: SampleTable, two: SampleTable) -> bool:
    columns = [(one.ids, two.ids), *((one.values[name], two.values[name]) for name in one.values)]
    for name in one.refs:
        ours, theirs = one.refs[name], two.refs[name]
        where = [[refs.segments[i] for i in refs.segment] for refs in (ours, theirs)]
        flags = [np.zeros(len(refs)) if refs.compressed is None else refs.compressed for refs in (ours, theirs)]
        columns += [
            (ours.offset, theirs.offset),
            (ours.length, theirs.length),
            tuple(map(np.array, where)),
            tuple(flags),
        ]
    assert one.inline.keys() == two.inline.keys()
    for name, ours in one.inline.items():
        theirs = two.inline[name]
        assert (ours.data is None) == (theirs.data is None)
        if ours.data is not None and theirs.data is not None:
            assert [None if item is None else bytes(item) for item in ours.data] == theirs.data.tolist()
            columns.append((ours.checksum, theirs.checksum))
    sets = [[table.datasets[i] for i in table.dataset] for table in (one, two)]
    return sets[0] == sets[1] and all(a.dtype == b.dtype and np.array_equal(_bits(a), _bits(b)) for a, b in columns)


def _bits(column: Any) -> Any:
    return column.view(np.int64) if column.dtype == np.float64 and column.flags.c_contiguous else column


@given(st.lists(documents, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_documents(docs: list[dict[str, Any]]) -> None:
    found = table_from_bson(LAYOUT, encoded(docs))
    if found is not None:
        assert same(found[0], table_from_docs(LAYOUT, docs))
        assert found[1] == (docs[-1]["dataset"], docs[-1]["_tdb"]["s"])


def test_documents_of_one_layout_take_the_fast_way() -> None:
    docs = [
        {
            "_id": ObjectId(),
            "dataset": "d",
            "label": number,
            "score": float("nan"),
            "seen": number % 2 == 0,
            "split": "train",
            "_tdb": {
                "s": number + 1,
                "b": {name: {"k": ObjectId(f"{number // 40:024x}"), "o": number, "n": 2} for name in ("image", "mask")},
            },
        }
        for number in range(100)
    ]
    found = table_from_bson(LAYOUT, encoded(docs))
    assert found is not None and same(found[0], table_from_docs(LAYOUT, docs)) and found[1] == ("d", 100)
    for number, doc in enumerate(docs):
        doc["_tdb"]["b"]["mask"] = {"d": bytes([number, 0]), "n": 2, "x": 2**40 + number}
    found = table_from_bson(LAYOUT, encoded(docs))
    assert found is not None and same(found[0], table_from_docs(LAYOUT, docs)) and set(found[0].inline) == {"mask"}
    for doc in docs:  # as a plan asks for them
        doc["_tdb"]["b"]["mask"] = {"n": 2}
    found = table_from_bson(LAYOUT, encoded(docs))
    assert found is not None and same(found[0], table_from_docs(LAYOUT, docs))
    assert found[0].inline["mask"].data is None
    docs[50]["split"] = "tests"
    assert table_from_bson(LAYOUT, encoded(docs)) is None
