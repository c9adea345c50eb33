"""`weights=Feedback(...)`: passes are drawn by what was known as they began, and a resume draws by the same."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from bson import ObjectId
from torch.utils.data import DataLoader

from tensordb_data import Feedback, NotFoundError, QueryError, SampleError, Shard, StateError, TensorDB, mix
from tensordb_data.common import boards
from tensordb_data.feedback.buffer import feedback_buffer
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.torch import QueryDataset, StepCheckpointer

N, BATCH = 40, 10
LOSS = Feedback("r", "loss")


@pytest.fixture
def fed(db: TensorDB) -> TensorDB:
    fill(db)
    with db.logs.run("r") as log:
        log.write(1, loss=1.0)
    return db


def fill(db: TensorDB) -> None:
    with db.data.writer("d") as w:
        w.add_many(x=np.arange(N), label=np.arange(N) % 2)


def open_stream(db: TensorDB, weights: Any = LOSS, **options: Any) -> Stream:
    given = {"shuffle": True, "replacement": True, "seed": 1, "fields": ["x", "_id"], **options}
    return db.data.find({"dataset": "d"}).stream(batch_size=BATCH, weights=weights, **given)


def tell(db: TensorDB, numbers: Any, run: str = "r") -> None:
    ids = [sample.id for sample in db.data.find({"dataset": "d"})]
    db.data.feedback(run, ids[: len(numbers)], loss=np.asarray(numbers, float))


def rows(batches: Iterator[Any], n: int) -> list[list[int]]:
    return [batch["x"].tolist() for batch in islice(batches, n)]


def draws(stream: Stream, batches: int) -> list[list[int]]:
    return rows(iter(stream), batches)


def test_a_pass_is_drawn_by_what_was_known_as_it_began(fed):
    stream = open_stream(fed)
    batches = iter(stream)
    uniform = rows(batches, 3)
    tell(fed, [0.0] * 39 + [1.0])  # in the middle of the first pass
    uniform += rows(batches, 1)
    assert uniform == draws(open_stream(fed, None), 4)  # nothing was known, so all were alike
    second = rows(batches, 2)
    assert set(chain(*second)) == {39}
    tell(fed, [0.0] * 38 + [400.0])
    assert set(chain(*rows(batches, 2))) == {39}
    third = [*chain(*rows(batches, 4))]  # 38 has 200 on average, and 39 has 1
    assert set(third) <= {38, 39} and third.count(38) > 36


@pytest.mark.parametrize("how", ["mean", "last", "count", "variance"])
def test_which_value_of_a_sample(fed, how):
    numbers = {"mean": [[6, 0], [2, 0]], "last": [[1, 0], [0, 3]], "count": [[1], [1]], "variance": [[6, 0], [2, 4]]}
    ids = [sample.id for sample in fed.data.find({"dataset": "d"})]
    for id, given in zip(ids[:2], numbers[how], strict=True):
        for number in given:
            fed.data.feedback("r", [id], loss=[float(number)])
    weights = {"mean": [3.0, 1.0], "last": [0.0, 3.0], "count": [1.0, 1.0], "variance": [9.0, 1.0]}[how]
    for missing in (None, 0.0):
        rest = np.mean(weights) if missing is None else missing
        expected = dict(zip(range(N), [*weights, *[rest] * (N - 2)], strict=True))
        by_function = open_stream(fed, lambda sample, of=expected: of[sample["x"]], passes=3)
        assert draws(open_stream(fed, Feedback("r", "loss", how, missing), passes=3), 12) == draws(by_function, 12)


def test_a_resume_draws_by_the_weights_of_its_pass(fed):
    tell(fed, np.arange(N))
    stream = open_stream(fed)
    batches = iter(stream)
    rows(batches, 1)
    state, plans = stream.state_dict(), stream.plans()
    expected = rows(batches, 3)
    tell(fed, np.arange(N)[::-1] * 1000)
    later = rows(batches, 4)

    here = open_stream(fed)
    here.load_state_dict(state)  # from the cache of this host
    assert (found := iter(here)) and rows(found, 3) == expected and rows(found, 4) == later
    shutil.rmtree(fed.warehouse.cache_dir)
    elsewhere = open_stream(fed)
    elsewhere.load_state_dict(state, plans=plans)
    assert (found := iter(elsewhere)) and rows(found, 3) == expected and rows(found, 4) == later
    shutil.rmtree(fed.warehouse.cache_dir)
    lost = open_stream(fed)
    with pytest.raises(StateError, match=r"feedback 'loss' of run 'r' as it was when the pass began.*not kept"):
        lost.load_state_dict(state)
    lost.load_state_dict(state, on_change="replan")
    assert draws(lost, 4) == later
    with pytest.raises(StateError, match="another `weights`"):
        open_stream(fed, Feedback("r", "loss", "last")).load_state_dict(state)
    with pytest.raises(StateError, match="does not name the weights of its pass"):
        open_stream(fed).load_state_dict({name: value for name, value in state.items() if name != "drawn_by"})
    for wrong in ("../../etc/passwd", "0" * 32, 5):
        with pytest.raises(StateError):
            open_stream(fed).load_state_dict({**state, "drawn_by": wrong})


def test_a_state_between_two_passes_goes_on_with_what_is_known_then(fed):
    tell(fed, np.arange(N))
    stream = open_stream(fed)
    draws(stream, 4)
    state = stream.state_dict()
    assert "drawn_by" not in state and stream.plans() == {}
    tell(fed, [0.0] * 39 + [1e9])
    again = open_stream(fed)
    again.load_state_dict(state)
    assert draws(again, 4) == draws(stream, 4)


def test_workers_agree_on_the_weights(fed):
    tell(fed, np.arange(N))
    feedback_buffer(fed.warehouse).flush()
    expected = draws(open_stream(fed, passes=2), 8)
    assert draws(pickle.loads(pickle.dumps(open_stream(fed))), 8) == expected  # noqa: S301
    loader = DataLoader(
        QueryDataset(open_stream(fed, passes=2)), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert [batch["x"].tolist() for batch in loader] == expected


def test_ranks_that_share_no_cache_draw_by_the_same(mongo_uri, warehouse_dir, monkeypatch):
    def rank(number: int) -> TensorDB:
        return TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / f"cache{number}")

    with rank(0) as one, rank(1) as two:
        fill(one)
        tell(one, [0.0] * 20 + [1.0] * 20)
        streams = [open_stream(db, shard=Shard(rank=r, world_size=2, group="run 7")) for r, db in enumerate((one, two))]
        expected = draws(open_stream(one), 4)
        first = iter(streams[0])
        found = rows(first, 1)
        tell(one, [1.0] * 20 + [0.0] * 20)  # the second rank begins its pass after that, and takes what was agreed on
        feedback_buffer(one.warehouse).flush()
        monkeypatch.setattr(boards, "_of_names", {})  # as in a process of its own
        second = iter(streams[1])
        found += rows(second, 1) + rows(first, 1) + rows(second, 1)
        assert found == expected
        next_pass = open_stream(one)
        next_pass.load_state_dict({**next_pass.state_dict(), "pass": 1})
        assert [*chain(*zip(rows(first, 2), rows(second, 2), strict=True))] == draws(next_pass, 4)


def test_a_mix_of_streams_by_feedback(fed):
    tell(fed, [0.0] * 39 + [1.0])
    mixed = mix([(open_stream(fed), 1.0), (open_stream(fed, None), 1.0)], seed=0)
    batches = iter(mixed)
    first = rows(batches, 6)
    state, plans = mixed.state_dict(), mixed.plans()
    expected = rows(batches, 2)
    assert sum(batch.count(39) for batch in first) > 20
    tell(fed, [1.0] * 39 + [0.0])
    again = mix([(open_stream(fed), 1.0), (open_stream(fed, None), 1.0)], seed=0)
    again.load_state_dict(state, plans=plans)
    assert rows(iter(again), 2) == expected


def test_what_cannot_be_drawn_by(fed):
    with pytest.raises(NotFoundError, match="there is no run 'none'"):
        next(iter(open_stream(fed, Feedback("none", "loss"))))
    fed.data.feedback("none", [ObjectId()], loss=[1.0])  # of no sample here, but this process has fed the run
    assert draws(open_stream(fed, Feedback("none", "loss")), 1) == draws(open_stream(fed, None), 1)
    tell(fed, [1.0, -0.5])
    with pytest.raises(SampleError, match=r"dataset 'd', sample .*-0\.5, of feedback 'loss' \(mean\) of run 'r'"):
        next(iter(open_stream(fed)))
    with pytest.raises(SampleError, match=r"missing=-1, of feedback 'loss' \(count\) of run 'r'"):
        next(iter(open_stream(fed, Feedback("r", "loss", "count", -1))))
    with pytest.raises(QueryError, match=r"feedback 'loss' \(variance\) of run 'r': .* all 40 samples are 0"):
        next(iter(open_stream(fed, Feedback("r", "loss", "variance"))))
    with pytest.raises(NotFoundError, match="has told no 'acc' of samples; it has told loss"):
        next(iter(open_stream(fed, Feedback("r", "acc"))))
    with pytest.raises(QueryError, match="replacement=True"):
        open_stream(fed, replacement=False)
    with pytest.raises(QueryError, match="a field name, a function or a Feedback"):
        open_stream(fed, 5)


def test_data_that_changes_begins_the_next_pass_with_new_samples_and_new_weights(fed):
    tell(fed, [0.0] * 39 + [1.0])
    batches = iter(open_stream(fed, Feedback("r", "loss", missing=7.0)))
    assert set(chain(*rows(batches, 4))) == {39}
    with fed.data.writer("d") as w:
        w.add(x=100, label=0)
    assert set(chain(*rows(batches, 4))) == {39, 100}


def test_a_connection_of_its_own_is_flushed_too(fed, mongo_uri, warehouse_dir):
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as other:
        tell(other, [0.0] * 39 + [1.0])
        assert set(chain(*draws(open_stream(fed), 4))) == {39}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("by_engine", [True, False])
def test_a_checkpoint_resumes_with_the_same_samples_on_another_host(fed, workers, by_engine):
    tell(fed, np.arange(N))

    def make() -> Any:
        stream = {"shuffle": True, "replacement": True, "seed": 1, "fields": ["x"], "weights": LOSS}
        sel = fed.data.find({"dataset": "d"})
        own = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
        if by_engine:
            return DataLoader(QueryDataset(sel, batch_size=5, **stream), batch_size=None, **own)
        return DataLoader(QueryDataset(sel, **stream), batch_size=5, **own)

    def saver(loader: Any) -> StepCheckpointer:
        return StepCheckpointer(fed, run="r", model=model, optimizer=None, every=2, stream=loader)

    model = torch.nn.Linear(1, 1)
    loader = make()
    got = []
    with contextlib.closing(saver(loader)) as checkpointer:
        for batch in islice(loader, 6):
            got.append(batch["x"].tolist())
            if len(got) <= 2:
                checkpointer.step()
    tell(fed, np.arange(N)[::-1] * 1000)
    feedback_buffer(fed.warehouse).flush()
    shutil.rmtree(fed.warehouse.cache_dir)
    again = make()
    with contextlib.closing(saver(again)) as checkpointer:
        assert checkpointer.restore() == 2
        assert [batch["x"].tolist() for batch in islice(again, 4)] == got[2:]
