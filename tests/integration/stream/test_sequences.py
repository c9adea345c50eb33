"""Streams of sequences: by tokens and packed, resumed at each batch, shared by ranks and workers."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Selection, TensorDB, mix
from tensordb_data.errors import QueryError, SampleError, StateError
from tensordb_data.params.lineage import of_data

LENGTHS = (np.random.default_rng(0).lognormal(2, 1, 150).astype(int) % 60).tolist()
N = len(LENGTHS)
TOKENS = {"batch_tokens": 128, "ragged": "pad", "shuffle": True, "passes": 1}
PACK: dict[str, Any] = {"batch_size": 2, "pack": 64, "shuffle": True, "passes": 1}


@pytest.fixture
def texts(db: TensorDB) -> Selection[Any]:
    schema = {"tokens": Array("int32", (None,)), "n_tokens": int, "number": int, "pair": Array("int8", (2,))}
    with db.data.writer("texts", schema=schema) as writer:
        for number, length in enumerate(LENGTHS):
            tokens = np.arange(length, dtype=np.int32) + 1000 * number
            writer.add(tokens=tokens, n_tokens=length, number=number, pair=np.zeros(2, np.int8))
    return db.data.find({"dataset": "texts"})


def numbers(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch["number"].tolist()]


def documents(batch: dict[str, Any]) -> list[list[int]]:
    """What a packed batch holds, by its segments; its positions and bounds must say the same."""
    found = []
    tokens, segments, positions = (batch[f"tokens{name}"] for name in ("", "_segments", "_positions"))
    for row, marks in zip(tokens, segments, strict=True):
        assert not row[marks == 0].any()
        found += [row[marks == mark].tolist() for mark in range(1, marks.max() + 1)]
    assert np.array_equal(positions[segments > 0], np.concatenate([np.arange(len(one)) for one in found]))
    bounds = batch["cu_seqlens"]
    assert bounds[0] == 0 and bounds[-1] == tokens.size and bounds.dtype == segments.dtype == np.int32
    parts = np.split(tokens.reshape(-1), bounds[1:-1])
    marked = np.split(segments.reshape(-1) > 0, bounds[1:-1])
    assert [part.tolist() for part, mark in zip(parts, marked, strict=True) if mark.any()] == [d for d in found if d]
    return found


def test_batches_by_tokens_hold_each_sample_once_and_at_most_so_many(texts: Selection[Any]) -> None:
    for length in ("tokens", "n_tokens", None):
        batches = list(texts.stream(**TOKENS, length=length))
        assert sorted(numbers(batches)) == list(range(N))
        assert max(batch["tokens"].size for batch in batches) <= 128
    padding = 1 - sum(LENGTHS) / sum(batch["tokens"].size for batch in batches)
    assert padding < 0.15 and numbers(batches) == numbers(texts.stream(**TOKENS, length="tokens"))
    in_order = texts.stream(batch_tokens=128, fields=["tokens", "number"], passes=2)
    first, second = np.split(np.array(numbers(in_order)), 2)
    assert np.array_equal(first, second)


def test_a_pack_has_whole_documents_and_what_belongs_to_each(texts: Selection[Any]) -> None:
    batches = list(texts.stream(**PACK))
    assert all(batch["tokens"].shape[1:] == (64,) for batch in batches) and batches[0]["tokens"].shape == (2, 64)
    got: dict[int, list[int]] = {}
    for batch in batches:
        own = [number for number in batch["number"].tolist() if LENGTHS[number]]
        got.update(zip(own, [one for one in documents(batch) if one], strict=True))
        assert batch["pair"].shape == (len(batch["number"]), 2)
    assert got == {n: list(range(1000 * n, 1000 * n + length)) for n, length in enumerate(LENGTHS) if length}
    assert sorted(numbers(batches)) == list(range(N))
    spec = texts.stream(**PACK).element_spec()
    assert spec["tokens"] == ("int32", (64,)) and spec["tokens_segments"] == ("int32", (64,))
    assert of_data(texts.stream(**PACK))[0]["tokens"]["pack"] == 64 and "tokens" not in of_data(texts.stream(4))[0]


@pytest.mark.parametrize("options", [TOKENS, PACK])
def test_a_resume_at_each_batch_and_the_count_of_a_loop_agree(texts: Selection[Any], options: dict[str, Any]) -> None:
    stream = texts.stream(**options, length="tokens").pin()
    start, states, batches = stream.state_dict(), [], []
    for batch in stream:
        batches.append(batch["number"].tolist())
        states.append(json.loads(json.dumps(stream.state_dict())))
    assert stream._batches_now(0) == len(batches)
    for done, state in enumerate(states, 1):
        found = stream.advance(start, done)
        assert (found["pass"], found["position"]) == (state["pass"], state["position"])
    assert states[-1]["pass"] == 1
    for done, state in enumerate(states[:-1], 1):
        again = texts.stream(**options, length="tokens")
        again.load_state_dict(state)
        assert [batch["number"].tolist() for batch in again] == batches[done:]
    for other in ({"length": "n_tokens"}, {"length": None}):
        with pytest.raises(StateError, match="`tokens`"):
            texts.stream(**{**options, **other}).load_state_dict(states[0])


@pytest.mark.parametrize("options", [TOKENS, PACK])
@pytest.mark.parametrize("world", [2, 7])
def test_ranks_and_workers_share_each_pass(texts: Selection[Any], options: dict[str, Any], world: int) -> None:
    whole = list(itertools.chain(texts.stream(**options, length="tokens").pin()))
    ranks = []
    for rank in range(world):
        stream = texts.stream(**options, length="tokens", rank=rank, world_size=world).pin()
        shards = [iter(stream.shard(index, 2)) for index in range(2)]
        turns = [batch for pair in itertools.zip_longest(*shards) for batch in pair if batch is not None]
        ranks.append(turns)
        assert [b["number"].tolist() for b in turns] == [b["number"].tolist() for b in stream]
    assert len({len(batches) for batches in ranks}) == 1
    got = numbers(itertools.chain(*ranks))
    assert sorted(set(got)) == sorted(numbers(whole)) and len(got) - N < (world if "pack" in options else 1) * 10


def test_long_samples_are_named_left_out_cut_or_split(texts: Selection[Any]) -> None:
    long = [number for number, length in enumerate(LENGTHS) if length > 20]
    for options in ({"batch_tokens": 20}, {"batch_size": 2, "pack": 20}):
        with pytest.raises(
            SampleError, match=r"sample \w{24} has the length \d+, and (batch_tokens|pack)=20 holds none"
        ):
            next(iter(texts.stream(**options, length="tokens")))
        left = numbers(texts.stream(**options, long="drop", passes=1))
        assert sorted(left) == sorted(set(range(N)) - set(long))
    cut = [d for batch in texts.stream(batch_size=2, pack=20, long="cut", passes=1) for d in documents(batch) if d]
    assert sorted(cut) == [list(range(1000 * n, 1000 * n + min(20, m))) for n, m in enumerate(LENGTHS) if m]
    split = [d for batch in texts.stream(batch_size=2, pack=20, long="split", passes=1) for d in documents(batch) if d]
    assert list(itertools.chain(*sorted(split))) == [1000 * n + at for n, m in enumerate(LENGTHS) for at in range(m)]
    with pytest.raises(QueryError, match="nothing is left of"):
        next(iter((texts & {"n_tokens": {"$gt": 1}}).stream(batch_tokens=1, long="drop", length="n_tokens")))


def test_what_does_not_fit_says_what_to_do(texts: Selection[Any], db: TensorDB) -> None:
    for options, says in (
        ({"batch_tokens": 64, "length": "none"}, "no field 'none'"),
        ({"batch_tokens": 64, "length": "dataset"}, "must be a whole number"),
        ({"batch_tokens": 64, "fields": ["number"]}, "name a field"),
        ({"batch_tokens": 64, "batch_size": 4}, "takes the place of batch_size="),
        ({"pack": 64}, "batch_size=, the rows"),
        ({"batch_tokens": 64, "follow": True}, "follow"),
        ({"batch_tokens": 64, "weights": "number"}, "weights"),
        ({"batch_tokens": 64, "length": "pair", "long": "split"}, "cuts no samples"),
    ):
        with pytest.raises((QueryError, SampleError), match=says):
            next(iter(texts.stream(**options)))  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="a mix takes its samples one by one"):
        mix([(texts.stream(batch_tokens=64), 1.0)])
    with pytest.raises(SampleError, match="by the index the sample has"):
        longer = texts.stream(
            batch_size=2, pack=64, transform=lambda s: {"tokens": np.append(s["tokens"], s["tokens"])}
        )
        list(itertools.islice(longer, 20))
    texts.update({"$set": {"n_tokens": -4}})
    with pytest.raises(SampleError, match="'n_tokens' is a length of -4"):
        next(iter(texts.stream(batch_tokens=64, length="n_tokens")))
    with db.data.writer("packed", compression="zstd") as writer:
        writer.add(tokens=np.zeros(10_000, np.int32), text="a")
    with pytest.raises(QueryError, match="compressed size"):
        next(iter(db.data.find({"dataset": "packed"}).stream(batch_tokens=64, length="tokens")))


def test_deleted_samples_leave_room_and_a_plan_keeps_its_lengths(texts: Selection[Any]) -> None:
    stream = texts.stream(**PACK, length="n_tokens").pin()
    first = next(iter(stream))["number"].tolist()
    state, plans = stream.state_dict(), stream.plans()
    rest = [batch["number"].tolist() for batch in stream]
    (texts & {"number": {"$in": rest[0]}}).delete()
    texts.update({"$inc": {"n_tokens": 1}})
    again = texts.stream(**PACK, length="n_tokens")
    again.load_state_dict(state, plans=plans)
    got = [batch["number"].tolist() for batch in again]
    assert got[1:] == rest[1:] and len(got[0]) == 1 and first
