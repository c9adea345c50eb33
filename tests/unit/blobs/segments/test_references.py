from __future__ import annotations

import copy

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.errors import StorageError

IDS = [ObjectId() for _ in range(4)]
TRUST = object()
DOC = st.fixed_dictionaries(
    {"k": st.sampled_from(IDS), "o": st.integers(0, 2**62), "n": st.integers(0, 2**40)},
    optional={"z": st.just(True)},
)


def as_docs(refs: BlobRefs) -> list[dict[str, object]]:
    zstd = [False] * len(refs) if refs.compressed is None else refs.compressed.tolist()
    columns = zip(refs.segment.tolist(), refs.offset.tolist(), refs.length.tolist(), zstd, strict=True)
    return [{"k": refs.segments[s], "o": o, "n": n, **({"z": True} if z else {})} for s, o, n, z in columns]


@given(st.lists(DOC, max_size=30), st.data())
def test_round_trip_and_take(docs: list[dict[str, object]], data: st.DataObject) -> None:
    refs = BlobRefs.from_docs(docs)
    assert len(refs) == len(docs)
    assert as_docs(refs) == docs
    assert as_docs(copy.deepcopy(refs)) == docs
    if docs:
        index = data.draw(st.lists(st.integers(0, len(docs) - 1), max_size=20))
        part = refs.take(np.array(index, np.int64))
        assert as_docs(part) == [docs[i] for i in index]
        assert as_docs(part.take(slice(1, None, 2))) == [docs[i] for i in index][1::2]
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(docs), max_size=len(docs))), np.bool_)
        assert as_docs(refs.take(mask)) == [doc for doc, taken in zip(docs, mask, strict=True) if taken]


@given(st.data())
def test_what_was_checked_is_known_to_all_that_were_taken(data: st.DataObject) -> None:
    refs = BlobRefs.from_docs([{"k": IDS[0], "o": i, "n": 1} for i in range(12)])
    done: set[int] = set()
    for _ in range(6):
        first = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=8))
        second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=8))
        part = refs.take(first).take(second)
        rows = {first[i] for i in second}
        assert part.checked(TRUST) == (rows <= done)
        if data.draw(st.booleans()):
            part.set_checked(TRUST, 1)
            done |= rows
    assert refs.checked(TRUST) == (len(done) == 12)


def test_checked_sizes() -> None:
    refs = BlobRefs.from_docs([{"k": IDS[0], "o": i, "n": 1 + i // 2} for i in range(4)])
    for part, size in ((refs.take([0, 1]), 1), (refs.take([2]), 2), (refs.take([3]), 2)):
        part.set_checked(TRUST, size)
    assert refs.checksum_cache is not None and refs.checksum_cache.verified is not None
    assert refs.checksum_cache.verified.complete
    assert refs.checksum_cache.verified.size is None
    assert not copy.deepcopy(refs).checked(TRUST)


@pytest.mark.parametrize(
    "doc",
    [
        {},
        {"k": IDS[0], "o": 1},
        {"k": IDS[0], "o": "x", "n": 1},
        {"k": IDS[0], "o": 2**70, "n": 1},
        None,
        {"k": [], "o": 1, "n": 1},
    ],
)
def test_what_is_no_reference(doc: object) -> None:
    with pytest.raises(StorageError, match="expected blob references"):
        BlobRefs.from_docs([doc])  # type: ignore[list-item]


def test_inline_references_have_a_segment_of_their_own() -> None:
    found = BlobRefs.from_docs([{"k": IDS[0], "o": 5, "n": 1}, {"d": b"ab", "n": 2, "x": 1}, {"n": 3, "z": True}])
    assert found.segments == (IDS[0], INLINE) and found.segment.tolist() == [0, 1, 1]
    assert (found.offset.tolist(), found.length.tolist()) == ([5, 0, 0], [1, 2, 3])
    assert found.compressed is not None and found.compressed.tolist() == [False, False, True]
    for broken in ({"o": 1, "n": 2}, {"k": IDS[0], "n": 2}, {"k": IDS[0], "o": 1}, {}):
        with pytest.raises(StorageError, match="blob references"):
            BlobRefs.from_docs([broken])
