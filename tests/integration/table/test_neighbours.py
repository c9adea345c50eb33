"""Nearest neighbours and duplicates, against a plain reference and a real server."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import Array, NotFoundError, QueryError, Sample, SampleError, Scalar, TensorDB
from tensordb_data.table.neighbours import column as column_module
from tensordb_data.table.neighbours import pairs as pairs_module
from tensordb_data.table.neighbours import vectors as vectors_module
from tensordb_data.table.neighbours.metrics import METRICS
from tensordb_data.table.neighbours.vectors import KeptVectors, LeftOut
from tests.helpers import at_most


def fill(db: TensorDB, values: Any, dtype: str = "float32", name: str = "x") -> list[ObjectId]:
    shape = np.asarray(values[0]).shape
    with db.data.writer(name, schema={"embedding": Array(dtype, shape)}, live=True) as writer:
        writer.add_many(embedding=np.asarray(values, dtype))
    return [one.id for one in db.data.find({"dataset": name})]


def scores_of(values: Any, to: Any, metric: str) -> np.ndarray:  # type: ignore[type-arg]
    a, b = np.asarray(values, np.float64), np.asarray(to, np.float64)
    if metric == "l2":
        return 0.0 - np.sqrt(np.square(a - b).sum(1))
    dot = (a * b).sum(1)
    if metric == "dot":
        return dot
    cosine = dot / np.sqrt(np.square(a).sum(1) * np.square(b).sum())
    return np.clip(cosine, -1, 1).astype(np.float32).astype(np.float64)


def test_nearest_first_with_scores(db: TensorDB) -> None:
    ids = fill(db, [[1, 0], [0, 1], [-1, 0], [1, 1], [0, 0], [np.nan, 1], [2, 0], [np.inf, 0]])
    sel = db.data.find({"dataset": "x"})
    found = sel.similar([1.0, 0.0])
    assert [one.id for one in found] == [ids[i] for i in (0, 6, 3, 1, 2)]
    assert [one.score for one in found] == [1, 1, float(np.float32(np.sqrt(0.5))), 0, -1]
    assert found.left_out == LeftOut(missing=0, zero=1, nan=2) and "zero=1" in repr(found)
    assert isinstance(found[0], Sample) and found[0] == sel.first() and sel.first() == found[0]
    assert found[0]["embedding"].tolist() == [1, 0]
    again = pickle.loads(pickle.dumps(found[2]))  # noqa: S301
    assert (again.id, again.score) == (ids[3], found[2].score)
    assert [one.score for one in sel.similar([1, 0], metric="l2", k=3)] == [0, -1, -1]
    assert [one.id for one in sel.similar([1, 0], metric="l2", k=3)] == [ids[0], ids[3], ids[6]]
    assert [one.score for one in sel.similar([1, 0], metric="dot", k=2)] == [2, 1]
    assert "<img" not in found._repr_html_() and "nearest first" in str(found._repr_html_())
    # a sample or its id is not among its own neighbours
    for to in (found[0], ids[0], str(ids[0]), db.data.find(fields=["dataset"]).first()):
        assert [one.id for one in sel.similar(to, k=2)] == [ids[6], ids[3]]
    assert [one.id for one in db.data.find({"_id": {"$in": ids[1:3]}}).similar(ids[0])] == ids[1:3]


@settings(max_examples=25)
@given(data=st.data())
def test_as_a_plain_reference_has_it(data: st.DataObject) -> None:
    from tensordb_data.table.neighbours.metrics import Comparison
    from tensordb_data.table.neighbours.similar import _Nearest

    width = data.draw(st.integers(1, 3))
    plain = st.lists(st.integers(-3, 3), min_size=width, max_size=width)
    scale = st.sampled_from([2.0**-120, 2.0**-30, 1, 1, 2.0**100])  # in which the reference is exact too
    vector = st.tuples(plain, scale).map(lambda pair: [n * pair[1] for n in pair[0]])
    values = np.array(data.draw(st.lists(vector, min_size=1, max_size=12)), np.float32)
    to = np.array(data.draw(vector.filter(any)), np.float32)
    metric, k = data.draw(st.sampled_from(METRICS)), data.draw(st.integers(1, 14))
    block = data.draw(st.integers(1, 12))
    nearest = _Nearest(Comparison(to, metric), k)
    for low in range(0, len(values), block):
        rows = np.arange(low, min(low + block, len(values)))
        nearest.add(vectors_module.clean(rows, values[rows]))
    kept = np.flatnonzero(values.any(1))
    expected = scores_of(values[kept], to, metric)
    best = np.lexsort((kept, -expected))[:k]
    assert nearest.found() == list(zip(kept[best].tolist(), expected[best].tolist(), strict=True))


@settings(max_examples=25)
@given(data=st.data())
def test_pairs_as_a_plain_reference_has_them(data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=1, max_size=14)), np.float32)
    above, most = data.draw(st.sampled_from([0.2, 0.6, 0.9, 1.0])), data.draw(st.sampled_from([1, 1_000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "_TILE", data.draw(st.integers(1, 6)))
        patch.setattr(pairs_module, "MOST_PAIRS", most)
        found = pairs_module.Pairs(above, len(values))
        whole = vectors_module.clean(np.arange(len(values)), values)
        at = data.draw(st.integers(0, len(whole)))
        for piece, other in ((whole.take(0, at), whole.take(at, len(whole))), (whole.take(at, len(whole)), None)):
            pairs_module.compare(piece, None, found)
            if other is not None:
                pairs_module.compare(piece, other, found)
    kept = np.flatnonzero(values.any(1)).tolist()
    expected = {}
    for i in kept:
        for j in (j for j in kept if j > i):
            score = float(scores_of(values[[j]], values[i], "cosine")[0])
            if score >= np.float32(above):
                expected[i, j] = score
    first, second, scores = found.sorted()
    assert found.count == len(expected)
    if found.count <= most:
        order = sorted(expected, key=lambda pair: (-expected[pair], pair))
        assert list(zip(first.tolist(), second.tolist(), strict=True)) == order
        assert scores.tolist() == [expected[pair] for pair in order]
    groups = [{i} for i in range(len(values))]
    for i, j in expected:
        one, other = (next(group for group in groups if n in group) for n in (i, j))
        if one is not other:
            groups.remove(other)
            one |= other
    assert list(found.groups()) == sorted(sorted(group) for group in groups if len(group) > 1)


def test_pairs_and_groups(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(db, [[1, 0], [0, 1], [2, 0.001], [0, 0], [-1, 0], [0, 3], [5, 0]])
    found = db.data.find({"dataset": "x"}).duplicates()
    pairs = list(found)
    assert [pair[:2] for pair in pairs] == [(ids[0], ids[6]), (ids[1], ids[5]), (ids[0], ids[2]), (ids[2], ids[6])]
    assert pairs[0].score == 1 and 0.99 < pairs[2].score < 1 and len(found) == 4
    assert found.groups == [[ids[0], ids[2], ids[6]], [ids[1], ids[5]]]
    assert found.extra == [ids[2], ids[6], ids[5]] and found.left_out.zero == 1
    assert "4 pairs in 2 groups" in repr(found) and str(ids[0]) in str(found._repr_html_())
    assert db.data.find({"_id": {"$in": found.extra}}).delete() == 3
    assert len(db.data.find().duplicates()) == 0 and db.data.find().duplicates().groups == []
    monkeypatch.setattr(pairs_module, "MOST_PAIRS", 0)
    ids = fill(db, [[1, 0]] * 3, name="y")
    many = db.data.find({"dataset": "y"}).duplicates(above=1)
    assert len(many) == 3 and many.groups == [ids]
    with pytest.raises(QueryError, match="3 pairs, and 1,000,000 at most are listed: use `groups`"):
        list(many)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int64", "bfloat16"])
def test_numbers_of_any_kind(db: TensorDB, dtype: str) -> None:
    ids = fill(db, np.array([[100, 3], [3, 100], [100, 4]]), dtype)
    sel = db.data.find()
    assert [one.id for one in sel.similar(ids[0], metric="l2")] == [ids[2], ids[1]]
    assert [one.score for one in sel.similar([100, 3], metric="dot")] == [10_012, 10_009, 600]
    assert [pair[:2] for pair in sel.duplicates()] == [(ids[0], ids[2])]


def test_what_float32_does_not_hold(db: TensorDB) -> None:
    ids = fill(db, [[1e300, 1], [1e-20, 0], [0, 1e38], [1e-60, 0]], "float64")
    found = db.data.find().similar([1.0, 0.0])
    assert [(one.id, one.score) for one in found] == [(ids[1], 1), (ids[2], 0)]
    assert found.left_out == LeftOut(0, 1, 1)
    assert db.data.find().similar([0, 1e38], metric="dot", k=1)[0].score == pytest.approx(1e76)


def test_optional_fields_filters_and_limits(db: TensorDB) -> None:
    schema = {"label": Scalar("int"), "embedding": Array("float32", (2,), optional=True)}
    with db.data.writer("x", schema=schema, live=True) as writer:
        for i in range(6):
            writer.add(label=i, **({} if i == 2 else {"embedding": np.array([1, i], np.float32)}))
    with db.data.writer("other", live=True) as writer:
        writer.add(label=1)
    found = db.data.find({"label": {"$lt": 5}}).similar([1, 0])
    assert [one["label"] for one in found] == [0, 1, 3, 4] and found.left_out == LeftOut(missing=2)
    found = db.data.find({"dataset": "x"}, sort=[("label", -1)], limit=2, fields=["label"]).similar([1, 0])
    assert [one["label"] for one in found] == [4, 5] and "embedding" not in found[0]
    assert len(db.data.find({"dataset": "x", "embedding": None}).similar([1, 0])) == 0
    with pytest.raises(QueryError, match="has no field 'embedding'"):
        db.data.find().similar(db.data.find({"label": 2}).first())


def test_datasets_of_different_dtypes(db: TensorDB) -> None:
    ids = [fill(db, [[1, i]], dtype, name=dtype)[0] for i, dtype in enumerate(("bfloat16", "float64", "int8"))]
    assert [one.id for one in db.data.find().similar([1, 0])] == ids
    with db.data.writer("free", schema={"embedding": Array("float32")}, live=True) as writer:
        writer.add(embedding=np.array([[1], [3]], np.float32))
    assert [one.id for one in db.data.find().similar([1, 0])][:3] == ids and len(db.data.find().similar([1, 0])) == 4


def test_changes_are_seen(db: TensorDB) -> None:
    ids = fill(db, [[1, 0], [1, 1], [0, 1]])
    sel = db.data.find({"dataset": "x"})
    assert [one.id for one in sel.similar([1, 0])] == ids
    kept = db.warehouse.memo(KeptVectors, KeptVectors)
    assert len(kept._kept) == 1 and len(sel.similar([0, 1])) == 3 and len(kept._kept) == 1
    db.data.find({"_id": ids[1]}).delete()
    assert [one.id for one in sel.similar([1, 0])] == [ids[0], ids[2]]
    fill(db, [[9, 0]])
    assert sel.similar([1, 0], k=1, metric="dot")[0]["embedding"].tolist() == [9, 0]
    db.close()
    assert db.warehouse.memo(KeptVectors, lambda: None) is None


def test_a_vector_that_an_ingest_replaces(db: TensorDB) -> None:
    for first in (1, -1):
        rows = [{"name": f"{i}", "embedding": np.array([first if i == 0 else 0.5, i], np.float32)} for i in range(3)]
        report = db.data.ingest(rows, "x", key="name")
        assert (report.added, report.updated) == ((3, 0) if first == 1 else (0, 1))
        found = db.data.find({"dataset": "x"}).similar([1, 0])
        assert [one["name"] for one in found] == (["0", "1", "2"] if first == 1 else ["1", "2", "0"])


def test_vectors_that_are_too_many_to_keep(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(-2, 3, (23, 2)).astype(np.float32)
    fill(db, values)
    sel = db.data.find({"dataset": "x"})
    monkeypatch.setattr(vectors_module, "KEPT_BYTES", 24 * 7)
    monkeypatch.setattr(column_module, "_BLOCK", 8 * 3)
    nearest = [(one.id, one.score) for one in sel.similar([1, 0], k=9)]
    parts = sel.duplicates()
    assert not db.warehouse.memo(KeptVectors, KeptVectors)._kept
    monkeypatch.undo()
    whole = sel.duplicates()
    assert [(one.id, one.score) for one in sel.similar([1, 0], k=9)] == nearest
    assert list(parts) == list(whole) and parts.groups == whole.groups and parts.left_out == whole.left_out
    assert len(db.warehouse.memo(KeptVectors, KeptVectors)._kept) == 1


def test_values_that_say_their_own_shape(db: TensorDB) -> None:
    with db.data.writer("x", schema={"embedding": Array("float32", (None, None))}, live=True) as writer:
        writer.add_many(embedding=[np.ones((1, 2), np.float32), np.ones((2, 1), np.float32)])
    assert [one.score for one in db.data.find().similar([1, 1])] == [1, 1]
    with db.data.writer("x", live=True) as writer:
        writer.add(embedding=np.ones((1, 3), np.float32))
    with pytest.raises(QueryError, match=r"sample .* expected 2 numbers, as other samples have, found 3"):
        db.data.find().similar([1, 1])
    with db.data.writer("none", schema={"embedding": Array("float32", (None,))}, live=True) as writer:
        writer.add(embedding=np.ones(0, np.float32))
    with pytest.raises(QueryError, match="vectors of 1 to 1,048,576 numbers, found 0"):
        db.data.find({"dataset": "none"}).similar([1, 1])


def test_what_is_refused(db: TensorDB) -> None:
    ids = fill(db, [[1, 0], [0, 1]])
    fill(db, [[1, 0, 0]], name="y")
    fill(db, [[True, False]], "bool", name="flags")
    fill(db, [[1j, 0]], "complex64", name="complex")
    with db.data.writer("plain", live=True) as writer:
        writer.add(embedding=[0.5, 0.5], label=3)
    sel = db.data.find({"dataset": "x"})
    for arguments, message in (
        ({"field": "embeding"}, "has a field 'embeding'; did you mean 'embedding'"),
        ({"k": 0}, "k is a whole number from 1; found 0"),
        ({"k": True}, "k is a whole number"),
        ({"metric": "cos"}, "metric is one of 'cosine', 'l2', 'dot'; found 'cos'"),
        ({"metric": ["l2"]}, "metric is one of"),
        ({"to": [1, 2, 3]}, "expected 2 numbers, as field 'embedding' has, found 3"),
        ({"to": []}, "found no numbers"),
        ({"to": [0, 0]}, "has no direction"),
        ({"to": [1, np.nan]}, "found NaN or infinity"),
        ({"to": [1, "a"]}, "expected real numbers"),
        ({"to": [[1], [1, 2]]}, "to is a vector, a sample"),
        ({"to": {"a": 1}}, "found a dict"),
        ({"to": None}, "found a NoneType"),
        ({"to": "cat"}, "24 hexadecimal digits, found 'cat'"),
        ({"field": 3}, "field"),
    ):
        with pytest.raises(QueryError, match=message):
            sel.similar(**{"to": [1, 0], **arguments})  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="there is no sample"):
        sel.similar(ObjectId())
    assert len(sel.similar([0, 0], metric="l2")) == 2
    for filter, message in (
        ({"dataset": {"$in": ["x", "y"]}}, "has 2 in 'x' and 3 in 'y' numbers: narrow the query"),
        ({"dataset": "flags"}, "integers or floats, found one of bool"),
        ({"dataset": "complex"}, "found one of complex64"),
        ({"label": 3}, "expected field 'embedding' to be an Array, found .* in dataset 'plain'; narrow"),
        ({"dataset": "plain"}, "expected field 'embedding' to be an Array, found"),
        ({"dataset": {"$in": ["x", "plain"]}}, "as a blob in one dataset and as a value in another"),
    ):
        with pytest.raises(QueryError, match=message):
            db.data.find(filter).duplicates()
    for above in (0, 1.1, "a", None, np.nan, True):
        with pytest.raises(QueryError, match="above is a"):
            sel.duplicates(above=above)  # type: ignore[arg-type]
    for call in (lambda: db.jobs.find().similar([1]), lambda: db.jobs.find().duplicates()):
        with pytest.raises(QueryError, match="only samples have vectors"):
            call()
    for empty in (db.data.find({"dataset": "x", "nothing": 1}), db.data.find({"dataset": "nowhere"})):
        assert list(empty.similar([1, 0])) == list(empty.duplicates()) == [] and ids


def test_a_hostile_dimension(db: TensorDB) -> None:
    ids = fill(db, [[1, 0]])
    datasets: Any = db.warehouse.index["datasets"]
    datasets.update_one({"_id.d": "x"}, {"$set": {"schema.embedding.shape": [2**40]}})
    with pytest.raises(QueryError, match="vectors of 1 to 1,048,576 numbers"):
        db.data.find({"dataset": "x"}).similar([1, 0])
    assert ids
    datasets.update_one({"_id.d": "x"}, {"$set": {"schema": {"other": {"kind": "int"}}}})
    fill(db, [[1, 0]], name="y")
    with pytest.raises(QueryError, match=r"an Array, found a blob that the schema does not name in dataset 'x'"):
        db.data.find().similar([1, 0])


def test_what_another_tool_has_written(db: TensorDB) -> None:
    ids = fill(db, [[1, 0], [0, 1]])
    data: Any = db.warehouse.index["data"]
    for broken, error, message in (
        ({"n": 2**62, "k": ObjectId(), "o": 0}, QueryError, "found a value of 4,611,686,018,427,387,904 bytes"),
        ({"n": "a"}, SampleError, f"sample {ids[1]}, field 'embedding': expected a reference"),
        ({"n": 8, "k": ObjectId(), "o": 0}, SampleError, f"sample {ids[1]}"),
    ):
        data.update_one({"_id": ids[1]}, {"$set": {"_tdb.b.embedding": broken}})
        sel = db.data.find({"dataset": "x", "nothing": None, "tags": {"$ne": f"{broken}"}})  # of which no plan is kept
        with pytest.raises(error, match=message):
            sel.similar([1, 0])
        with pytest.raises(error, match=message):
            sel.duplicates()


def test_a_long_chain_is_one_group() -> None:
    pairs = pairs_module.Pairs(0.9, 50_000)
    rows = np.arange(50_000)
    for low in range(0, 49_999, 7_000):
        pairs._unite(rows[:-1][low : low + 7_000], rows[1:][low : low + 7_000])
    assert [len(group) for group in pairs.groups()] == [50_000]


def test_the_limit_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    one = vectors_module.clean(np.arange(2), np.ones((2, 2), np.float32))
    monkeypatch.setattr(vectors_module, "KEPT_BYTES", 2 * one.nbytes)
    kept = KeptVectors()
    for key in ("a", "b", "a", "c"):
        kept.keep(key, kept.get(key) or one)
    assert kept.get("b") is None and kept.get("a") is one and kept.get("c") is one
    kept.make_room(2 * one.nbytes - 1)
    assert kept.get("a") is kept.get("c") is None


def test_tensors_and_tables_as_target(db: TensorDB) -> None:
    import pandas as pd
    import torch

    ids = fill(db, [[1, 0], [0, 1]])
    for to in (torch.tensor([[1.0, 0.1]], requires_grad=True), pd.Series([1.0, 0.1]), (1, 0.1), np.float16([1, 0.1])):
        assert [one.id for one in db.data.find().similar(to)] == ids
    for wrong in ([10**400, 1], [10**400, 1.0], {1, 2}, b"ab", np.ma.masked_array([1, 2]), ["a", "b"], object()):
        with pytest.raises(QueryError, match="similar: to"):
            db.data.find().similar(wrong)


def test_memory_is_bounded(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(4_000, 256)).astype(np.float32)
    with db.data.writer("x") as writer:
        writer.add_many(embedding=values)
    sel = db.data.find({"dataset": "x"})
    monkeypatch.setattr(vectors_module, "KEPT_BYTES", 1 << 20)
    monkeypatch.setattr(column_module, "_BLOCK", 1 << 17)
    monkeypatch.setattr(pairs_module, "_TILE", 128)
    assert len(sel.similar(values[0], k=3)) == 3  # what is read once, such as the plan, is there
    with at_most(values.nbytes * 3 // 4):
        assert sel.similar(values[7], k=1)[0].score == 1
        assert len(sel.duplicates(above=0.9)) == 0
