"""The parts of an ingest that need no server."""

from __future__ import annotations

import datetime as dt
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.engine.seen import Seen
from tensordb_data.ingest.places import _expanded, find_files, glob_pattern
from tensordb_data.ingest.readers.csv import _fits, _reader
from tensordb_data.ingest.readers.layout import find_layout
from tensordb_data.schema import Scalar
from tensordb_data.schema.image_header import read_header
from tensordb_data.warehouse.identity import Identities, row_key, scalar_bytes


def refuse(name: str, why: str) -> None:
    raise AssertionError(f"{name}: {why}")


@given(st.lists(st.lists(st.integers(0, 50), max_size=30), max_size=8))
def test_what_was_seen(batches: list[list[int]]) -> None:
    seen, known = Seen(), set[int]()
    for batch in batches:
        digests = [n.to_bytes(12, "big") for n in batch]
        expected = []
        for n in batch:
            expected.append(n in known)
            known.add(n)
        assert seen.add(digests).tolist() == expected
        assert seen.has(digests).all()
    assert seen.has([n.to_bytes(12, "big") for n in range(51)]).tolist() == [n in known for n in range(51)]


def test_many_were_seen() -> None:
    seen = Seen()
    digests = [os.urandom(12) for _ in range(200_000)]
    for start in range(0, len(digests), 1000):
        assert not seen.add(digests[start : start + 1000]).any()
    assert seen.has(digests[::7]).all() and len(seen._sorted) < 8


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner), max_leaves=6
)


@given(st.dictionaries(st.text("abc", min_size=1), values, max_size=4), st.randoms())
def test_a_digest_does_not_depend_on_the_order_of_fields(fields: dict[str, Any], random: Any) -> None:
    names = list(fields)
    random.shuffle(names)
    shuffled = {name: fields[name] for name in names}
    assert scalar_bytes(fields) == scalar_bytes(shuffled)
    assert scalar_bytes(fields) == scalar_bytes({**fields, "none": None})


@given(scalars, scalars)
def test_digests_of_different_values_differ(one: Any, other: Any) -> None:
    nan = all(isinstance(value, float) and value != value for value in (one, other))
    number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    same = nan or (one == other if number else type(one) is type(other) and one == other)
    assert (scalar_bytes({"x": one}) == scalar_bytes({"x": other})) == same


def test_identities_do_not_run_into_each_other() -> None:
    ids = Identities("p", "d")
    found = {
        ids.of_key(b"ab"), ids.of_key(b"b", "a"), ids.of_place("", b"ab"), ids.of_place("a", b"b"),
        ids.of_content(b"x" * 16, 0), ids.of_content(b"x" * 16, 1), Identities("pd", "").of_key(b"ab"),
        Identities("p", "da").of_key(b"b"),
    }  # fmt: skip
    assert len(found) == 8
    assert str(ids.of_key(row_key(["vin-1"]))) == "d831227e2db146b74733918a"  # as all versions make it
    assert row_key([1]) == row_key([1.0]) == row_key([np.int64(1)]) != row_key(["1"])
    assert row_key([dt.datetime(2024, 1, 1)]) != row_key([0])
    with pytest.raises(SchemaError, match="a missing one"):
        row_key([1, None])


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("**/*.tar", "a/b/c.tar", True), ("**/*.tar", "c.tar", True), ("*.tar", "a/c.tar", False),
        ("a/**", "a/b/c", True), ("[ab].x", "b.x", True), ("[!ab].x", "b.x", False), ("?.x", "/.x", False),
        ("a+b.x", "a+b.x", True), ("[", "[", True),
    ],
)  # fmt: skip
def test_globs(pattern: str, path: str, fits: bool) -> None:
    assert bool(re.fullmatch(glob_pattern(pattern), path)) == fits


def test_braces(tmp_path: Path) -> None:
    assert _expanded("s/{000..002}.tar") == ["s/000.tar", "s/001.tar", "s/002.tar"]
    assert _expanded("{a,b}/{8..9}") == ["a/8", "a/9", "b/8", "b/9"]
    assert _expanded("a{b}c") == ["a{b}c"]
    for text in ("{0..9999999}", "{0..999999}{0..999999}", "{5..1}"):
        with pytest.raises(SchemaError, match="expected"):
            _expanded(text)
    (tmp_path / "1.csv").touch()
    with pytest.raises(SchemaError, match=r"nothing at .*2\.csv"):
        find_files(f"{tmp_path}/{{1..2}}.csv", refuse)
    (tmp_path / "a{1,2}.csv").touch()  # a name with braces of its own
    assert [file.name for file in find_files(tmp_path / "a{1,2}.csv", refuse).files] == ["a{1,2}.csv"]
    with pytest.raises(SchemaError, match="nothing at"):
        find_files(tmp_path / "no*.csv", refuse)
    with pytest.raises(SchemaError, match="expected the path"):
        find_files("", refuse)
    with pytest.raises(SchemaError, match="found both"):
        find_files([str(tmp_path), "s3://b/x"], refuse)


@given(st.text("0123456789+-.eE_ naifNIF", max_size=22))
def test_a_number_of_csv_loses_nothing(cell: str) -> None:
    if not cell:
        return
    for kind, name in ((1, "int"), (2, "float")):
        if _fits(cell, kind):
            value = _reader(Scalar(name))(cell)
            assert type(value).__name__ == name
            if name == "int":
                assert str(value) == cell
            elif re.fullmatch(r"-?\d+", cell):
                assert int(value) == int(cell)


names = st.lists(st.sampled_from(["train", "val", "cat", "ape", "images", "masks"]), max_size=3)


@given(
    st.lists(
        st.tuples(names, st.sampled_from(["0", "1"]), st.sampled_from([".png", ".jpg"])), min_size=1, unique_by=str
    )
)
def test_a_layout_takes_or_names_each_file(files: list[tuple[list[str], str, str]]) -> None:
    paths = ["/".join([*folders, stem + suffix]) for folders, stem, suffix in files]
    failed: list[str] = []
    layout = find_layout(paths, lambda name, why: failed.append(name), split=True, label=True)
    masks = {place.mask for place in layout.places.values()} - {None}
    named = set(layout.places) | masks | set(failed)
    unnamed = set(paths) - named
    assert set(layout.places) <= set(paths) and all("masks" in path for path in unnamed)
    assert len({place.split is None for place in layout.places.values()}) <= 1
    assert len({place.label is None for place in layout.places.values()}) <= 1


@given(
    st.binary(max_size=64),
    st.sampled_from([b"", b"GIF89a", b"RIFF____WEBPVP8X", b"II*\0", b"BM", b"P5 ", b"\0\0\0\x0cjP  \r\n\x87\n"]),
)
def test_a_header_of_anything_is_read_or_refused(data: bytes, head: bytes) -> None:
    found = read_header(head + data)
    assert found is None or found.height >= 0
