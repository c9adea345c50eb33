"""Documents that are encoded together have the bytes of those that the driver encodes one by one."""

from __future__ import annotations

import datetime as dt
from typing import Any
from unittest import mock

import bson
import numpy as np
import pytest
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Bytes, Scalar, SchemaError, Text
from tensordb_data.mongo import object_ids
from tensordb_data.mongo.object_ids import new_ids, new_object_id
from tensordb_data.samples import write_batch as batch_module
from tensordb_data.samples.columns import encode_columns
from tensordb_data.samples.encode import rows as rows_module
from tensordb_data.samples.write_batch import WriteBatch
from tensordb_data.schema.schema import Schema
from tensordb_data.search.index import words_of

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([-(2**31), 2**31 - 1]))
LONG = st.one_of(st.integers(2**31, 2**63 - 1), st.integers(-(2**63), -(2**31) - 1))
ZONES = st.sampled_from([None, dt.timezone.utc, dt.timezone(dt.timedelta(hours=-7, minutes=30))])
TIMES = st.datetimes(dt.datetime(3, 1, 1), dt.datetime(9998, 1, 1), timezones=ZONES)
NESTED = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, LONG, st.floats(), WORDS, TIMES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("añ ", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "small": (Scalar("int"), NUMBERS),
    "long": (Scalar("int"), LONG),
    "mixed": (Scalar("int"), st.one_of(NUMBERS, LONG)),
    "float": (Scalar("float"), st.floats()),
    "bool": (Scalar("bool"), st.booleans()),
    "größe (mm)": (Scalar("str"), WORDS),
    "split": (Scalar("str"), st.sampled_from(["train", "ваl"])),
    "when": (Scalar("datetime"), TIMES),
    "meta": (Scalar("json"), NESTED.filter(lambda value: value is not None)),
    "fixed": (Array("uint8", (3,)), st.binary(min_size=3, max_size=3).map(lambda b: np.frombuffer(b, np.uint8))),
    "empty": (Array("float32", (0, 2)), st.just(np.empty((0, 2), np.float32))),
    "any": (Array("float32"), st.lists(st.floats(width=32), max_size=9).map(lambda x: np.array(x, np.float32))),
    "raw": (Bytes(), st.one_of(st.binary(max_size=40), st.just(b"a" * 5000))),
    "note": (Text(), st.one_of(WORDS, st.just("again " * 40))),
}


@st.composite
def samples(draw: st.DrawFn) -> tuple[Schema, list[dict[str, Any]], list[list[str]]]:
    names = draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True, min_size=1, max_size=6))
    optional = {name: draw(st.booleans()) for name in names}
    n = draw(st.integers(1, 24))
    schema = {}
    for name in names:
        field = KINDS[name][0]
        schema[name] = type(field)(**{**vars(field), "optional": optional[name]})
    rows = [
        {name: value for name in names
         if (value := draw(st.one_of(st.none(), KINDS[name][1]) if optional[name] else KINDS[name][1])) is not None}
        for _ in range(n)
    ]  # fmt: skip
    tags = draw(st.one_of(
        st.just([[]] * n), st.just([["a", "ü"]] * n),
        st.lists(st.lists(st.sampled_from(["a", "ß", "c"]), unique=True), min_size=n, max_size=n),
    ))  # fmt: skip
    return Schema(schema), rows, tags


def filled(
    schema: Schema, rows: list[dict[str, Any]], tags: list[list[str]], ids: list[ObjectId], *,
    level: int | None, live: bool, columns: slice,
) -> WriteBatch:  # fmt: skip
    """A batch of these samples, some of them added in columns."""
    batch = WriteBatch("p", "d", schema, level, live)
    batch.segment_id = ObjectId("a" * 24)

    def add(some: slice) -> None:
        for id, of, row in zip(ids[some], tags[some], rows[some], strict=True):
            batch.add(id, of, row)

    add(slice(0, columns.start))
    some = rows[columns]
    if some:
        given = {name: [row.get(name) for row in some] for name in schema}
        encoded = encode_columns("d", schema, len(some), given)
        batch.add_columns(ids[columns], tags[columns], {k: c[slice(0, len(some))] for k, c in encoded.items()})
    add(slice(columns.stop, None))
    return batch


@settings(max_examples=120)
@given(samples(), st.sampled_from([None, 3]), st.booleans(), st.data(), st.sampled_from([1, 7, 2**31 - 12, 2**31 + 5]))
def test_documents_have_the_bytes_of_plain_ones(
    given: tuple[Schema, list[dict[str, Any]], list[list[str]]],
    level: int | None,
    live: bool,
    data: st.DataObject,
    first: int,
) -> None:
    schema, rows, tags = given
    ids = new_ids(len(rows))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(rows))] * 2)))
    made: list[WriteBatch] = [
        filled(schema, rows, tags, ids, level=level, live=live, columns=slice(start, stop)) for _ in range(3)
    ]
    encoded, plain, untouched = made
    docs = plain.docs
    assert encoded.ids == ids == [doc["_id"] for doc in docs]
    assert encoded.first_references() == docs[0]["_tdb"].get("b") and len(encoded) == len(docs) == len(rows)
    each = [words_of("data", [doc]) for doc in docs]
    assert encoded.words()() == tuple(
        {key: id for part in parts for key, id in part.items()} for parts in zip(*each, strict=True)
    )
    with mock.patch.object(rows_module, "FEW", 1):
        assert b"".join(x if isinstance(x, bytes) else bson.encode(x) for x in encoded.encoded()) == b"".join(
            map(bson.encode, docs)
        )
        for number in (first, first + 1):  # a transaction may run again
            inserted = encoded.numbered(number)
            expected = plain.numbered(number, plain=True)
            assert all(isinstance(doc, RawBSONDocument) for doc in inserted) == (number + len(rows) - 1 < 2**31)
            assert list(map(bson.encode, inserted)) == list(map(bson.encode, expected))
    one, two = untouched.halves() if len(rows) > 1 else (untouched, None)
    halves = [doc for half in (one, two) if half is not None for doc in half.docs]
    assert list(map(bson.encode, halves)) == [bson.encode({**d, "_tdb": {**d["_tdb"], "s": 0}}) for d in docs]


def test_fields_of_which_the_schema_hears_later() -> None:
    before = Schema({"a": Scalar("int")})
    after = Schema({**before, "b": Scalar("str", optional=True), "c": Bytes(optional=True)})
    batch = WriteBatch("p", "d", before, None)
    ids = new_ids(40)
    for i in range(20):
        batch.add(ids[i], [], {"a": i})
    batch.grow(after)
    for i in range(20, 40):
        batch.add(ids[i], [], {"a": i, "b": "x", "c": b"y"} if i % 2 else {"a": i})
    docs = [bson.decode(doc.raw) for doc in batch.numbered(1) if isinstance(doc, RawBSONDocument)]
    assert [doc["a"] for doc in docs] == list(range(40))
    assert [doc.get("b") for doc in docs] == [None] * 20 + [None, "x"] * 10
    assert ["b" in doc["_tdb"] for doc in docs] == [False] * 20 + [False, True] * 10


def test_an_interrupted_add_leaves_no_half_of_a_sample() -> None:
    schema = Schema({"x": Array("uint8", (2,)), "y": Bytes(), "n": Scalar("int")})
    batch = WriteBatch("p", "d", schema, None)
    ids = new_ids(3)
    values = [{"x": np.full(2, i, np.uint8), "y": b"y" * i, "n": i} for i in range(3)]
    batch.add(ids[0], [], values[0])
    with mock.patch.object(rows_module.SampleRows, "keep", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            batch.add(ids[1], [], values[1])
    batch.add(ids[2], [], values[2])
    assert [doc["n"] for doc in batch.docs] == [0, 2] and len(batch) == 2
    packed = batch.builder.finish(batch.docs)
    data = b"".join(bytes(part) for part in packed.parts)
    for doc in batch.docs:
        place = doc["_tdb"]["b"]["y"]
        assert data[place["o"] : place["o"] + place["n"]] == b"y" * doc["n"]


def test_a_column_with_a_document_over_16_mb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = Schema({"text": Scalar("str"), "meta": Scalar("json")})
    given = {"text": ["a", "x" * (17 * 2**20)], "meta": [[], {}]}
    batch = WriteBatch("p", "d", schema, None)
    columns = {name: column[slice(0, 2)] for name, column in encode_columns("d", schema, 2, given).items()}
    with pytest.raises(SchemaError, match=r"field 'text': expected at most 16 MB.*17\.0 MB.*Text\(\)"):
        batch.add_columns(new_ids(2), [[], []], columns)
    assert len(batch) == 0
    # Two large ones of different samples are none together.
    given = {"text": ["a", "x" * (9 * 2**20)], "meta": ["y" * (9 * 2**20), {}]}
    columns = {name: column[slice(0, 2)] for name, column in encode_columns("d", schema, 2, given).items()}
    monkeypatch.setattr(batch_module, "DOCUMENT_BYTES", 18 * 2**20)
    batch.add_columns(new_ids(2), [[], []], columns)
    assert len(batch) == 2 and batch.full


def test_new_ids_are_in_order_and_never_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_ids, "_COUNTS", 64)
    monkeypatch.setattr(object_ids, "_maker", object_ids._Maker())
    made = [*new_ids(10), new_object_id(), *new_ids(200), *(new_object_id() for _ in range(100))]
    assert len(set(made)) == len(made) == 311
    monkeypatch.undo()
    some = [*new_ids(3), new_object_id(), *new_ids(2)]
    assert some == sorted(some) and len({id.binary[4:9] for id in some}) <= 2
    assert abs((some[0].generation_time - dt.datetime.now(dt.timezone.utc)).total_seconds()) < 60
