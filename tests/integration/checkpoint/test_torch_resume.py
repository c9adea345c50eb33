"""A run that was interrupted and resumed gives the losses of one that was not: equal, not close."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tensordb_data.errors import CheckpointError, CorruptBlobError, NotFoundError, StateError
from tensordb_data.torch import QueryDataset, StepCheckpointer
from tests.integration.checkpoint.loops import adamw, augment, batchwise, fill, net, one_step, samplewise, sgd, train


@pytest.mark.parametrize(("build", "before", "after"), [(adamw, 0, 0), (adamw, 2, 2), (sgd, 0, 2), (sgd, 2, 0)])
def test_batchwise_is_exact_for_any_number_of_workers(db, build, before, after):
    fill(db)
    _, whole = train(db, "whole", 30, batchwise(db), build=build)
    _, first = train(db, "cut", 18, batchwise(db, before), build=build)
    start, rest = train(db, "cut", 30, batchwise(db, after), build=build, restore=True)
    assert start == 15
    assert first == {step: whole[step] for step in range(1, 19)}
    assert rest == {step: whole[step] for step in range(16, 31)}


@pytest.mark.parametrize("workers", [0, 2])
def test_samplewise_is_exact_with_the_same_workers(db, workers):
    fill(db)
    _, whole = train(db, "whole", 22, samplewise(db, workers))
    train(db, "cut", 12, samplewise(db, workers))
    start, rest = train(db, "cut", 22, samplewise(db, workers), restore=True)
    assert start == 10 and rest == {step: whole[step] for step in range(11, 23)}


def stream(db):
    return db.data.find({"dataset": "x"}).stream(batch_size=16, shuffle=True, seed=0, transform=augment)


def stateful(db):
    dataset = QueryDataset(db.data.find({"dataset": "x"}), batch_size=16, shuffle=True, seed=0, transform=augment)
    return StatefulDataLoader(dataset, batch_size=None)


@pytest.mark.parametrize("make", [stream, stateful, lambda db: QueryDataset(stream(db))])
def test_other_streams_too(db, make):
    fill(db)
    _, whole = train(db, "whole", 22, make(db))
    train(db, "cut", 12, make(db))
    start, rest = train(db, "cut", 22, make(db), restore=True)
    assert start == 10 and rest == {step: whole[step] for step in range(11, 23)}


def test_resumed_twice_and_an_earlier_step(db):
    fill(db)
    _, whole = train(db, "whole", 30, batchwise(db))
    for end in (8, 16):
        train(db, "cut", end, batchwise(db), restore=True)
    assert train(db, "cut", 30, batchwise(db), restore=True) == (15, {step: whole[step] for step in range(16, 31)})
    loader, model = batchwise(db), net()
    optimizer, _ = sgd(model)
    with StepCheckpointer(db, run="cut", model=model, optimizer=optimizer, every=5, stream=loader) as ckpt:
        assert ckpt.restore(step=10) == 10
        for step, batch in enumerate(loader, 11):
            assert one_step(model, optimizer, None, batch) == whole[step]
            ckpt.step()
            if step == 17:
                break
    with StepCheckpointer(db, run="cut", model=model, optimizer=optimizer, every=5, stream=loader) as ckpt:
        assert ckpt.restore() == 15  # the newest, not the 30 of the branch that was left


@pytest.mark.parametrize("stop", [8, 10])
@pytest.mark.parametrize("make", [batchwise, samplewise])
def test_epochs_of_a_finite_dataset(db, make, stop):
    """The first epoch after a resume delivers the rest, the others everything; also when nothing is left of it."""
    fill(db, 80)

    def run(name, epochs, done, every, stop=None, restore=False):
        loader, model, losses = make(db, passes=1), net(), []
        optimizer, _ = sgd(model)
        with StepCheckpointer(db, run=name, model=model, optimizer=optimizer, every=every, stream=loader) as ckpt:
            step = ckpt.restore() if restore else 0
            for _ in range(epochs - done):
                for batch in loader:
                    losses.append(one_step(model, optimizer, None, batch))
                    ckpt.step()
                    step += 1
                    if step == stop:
                        return losses
        return losses

    whole = run("whole", 4, 0, 3)
    assert len(whole) == 20
    saved = {8: 6, 10: 10}[stop]
    run("cut", 4, 0, saved, stop=stop)
    assert run("cut", 4, saved // 5, saved, restore=True) == whole[saved:]


def test_counts_batches_not_calls(db):
    fill(db)
    loader, model = batchwise(db, 2), net()
    with StepCheckpointer(db, run="r", model=model, every=4, stream=loader) as ckpt:
        for number, _ in enumerate(loader, 1):
            if number % 3 == 0:  # gradient accumulation
                ckpt.step()
            if number == 13:
                break
    assert sorted(db.params.find({"run": "r"}).distinct("step")) == [6, 9, 12]
    assert db.params.find({"run": "r", "step": 12}).first().load("stream")["position"] == 12 * 16


def test_without_a_stream_calls_are_counted(db):
    model = net()
    with StepCheckpointer(db, run="r", model=model, every=4) as ckpt:
        for _ in range(9):
            ckpt.step()
        assert ckpt.last_step == 9 and ckpt.stats()["saves"] == 2
    assert StepCheckpointer(db, run="r", model=model, every=4).restore() == 8


def test_state_of_one_instant(db):
    """Everything is changed as soon as step() returns; no set holds a mixture."""
    model = torch.nn.Linear(300, 300)
    with StepCheckpointer(db, run="r", model=model, every=1) as ckpt:
        for step in range(1, 21):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(step)
            ckpt.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(-1)
    for found in db.params.find({"run": "r"}):
        assert {value.unique().item() for value in found.load().values()} == {found.step}


def test_the_loop_must_iterate_the_stream(db):
    fill(db)
    with StepCheckpointer(db, run="r", model=net(), every=4, stream=batchwise(db)) as ckpt:
        with pytest.raises(CheckpointError, match="the very object"):
            ckpt.step()


def test_a_run_without_a_name_is_refused(db):
    with pytest.raises(CheckpointError, match="needs the name of its run"):
        StepCheckpointer(db, run=None, model=torch.nn.Linear(1, 1), every=1)


def test_what_has_no_position_is_refused(db):
    loader = DataLoader([1, 2])
    with pytest.raises(CheckpointError, match="DataLoader over a list"):
        StepCheckpointer(db, run="r", model=net(), every=4, stream=loader)
    assert type(loader) is DataLoader


def test_what_does_not_fit_is_refused_and_changes_nothing(db):
    fill(db)
    train(db, "r", 5, batchwise(db))
    model = net(width=17)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, scheduler = adamw(model)
    loader = batchwise(db)
    with StepCheckpointer(db, run="r", model=model, optimizer=optimizer, every=5, stream=loader) as ckpt:
        with pytest.raises(StateError, match=r"4 of another shape|of another shape: 0.weight: expected \(17, 8\)"):
            ckpt.restore()
        with pytest.raises(NotFoundError, match="at step 7"):
            ckpt.restore(step=7)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert loader.dataset.state_dict()["position"] == 0
    with StepCheckpointer(db, run="r", model=net(), optimizer=optimizer, scheduler=scheduler, every=5) as ckpt:
        with pytest.raises(StateError, match="has no scheduler"):
            ckpt.restore()
    with StepCheckpointer(db, run="r", model=net(), every=5) as ckpt:
        with pytest.warns(UserWarning, match="has optimizer, stream too"):
            assert ckpt.restore() == 5
    other = batchwise(db, seed=1)
    model = net()
    with StepCheckpointer(db, run="r", model=model, optimizer=sgd(model)[0], every=5, stream=other) as ckpt:
        with pytest.raises(StateError, match="seed"):
            ckpt.restore()


def test_damage_is_named_and_nothing_older_is_taken_silently(db):
    train_loader = net()
    with StepCheckpointer(db, run="r", model=train_loader, every=1) as ckpt:
        for _ in range(2):
            with torch.no_grad():
                train_loader[0].weight.add_(1)
            ckpt.step()
    newest = db.params.find({"run": "r", "step": 2}).first()
    key = f"params/{newest.id}.safetensors"
    path = db.warehouse.blobs.store().local_path(key)
    data = bytearray(path.read_bytes())
    data[data.index(train_loader[0].weight.detach().numpy().tobytes()) + 5] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(CorruptBlobError, match=r"'model/0.weight' of parameter set .* at step 2 is damaged"):
        newest.load()
    with StepCheckpointer(db, run="r", model=net(), every=1) as ckpt:
        with pytest.raises(CorruptBlobError, match=r"restore\(step=1\) continues"):
            ckpt.restore()
        assert ckpt.restore(step=1) == 1


def test_an_error_in_the_background_reaches_the_loop(db, monkeypatch):
    model = net()
    ckpt = StepCheckpointer(db, run="r", model=model, every=1)

    def full(*args, **options):
        raise OSError("no space left")

    store = db.warehouse.blobs.store()
    monkeypatch.setattr(store, "put", full)
    ckpt.step()
    with pytest.raises(CheckpointError, match="no space left"):
        ckpt.wait()
    monkeypatch.undo()
    ckpt.step()
    ckpt.close()
    assert db.params.find({"run": "r"}).distinct("step") == [2]
    assert ckpt.stats()["failed"] == 1 and ckpt.stats()["durable"] == 1
    with pytest.raises(CheckpointError, match="closed"):
        ckpt.step()


def test_losses_are_logged(db):
    fill(db)
    _, losses = train(db, "r", 7, batchwise(db))
    rows = db.logs.find({"run": "r", "kind": "train"}, sort=[("step", 1)]).all()
    assert {row.step: row["loss"] for row in rows} == losses
    assert db.params.find({"run": "r"}).first()["loss"] == losses[5]
