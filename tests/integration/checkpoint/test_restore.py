"""A state goes to the parameters and objects that it belongs to, or nothing is changed."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from tensordb_data.errors import StateError
from tensordb_data.torch import Learner, StepCheckpointer


class Net(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names or ("a", "b"):
            self.add_module(name, nn.Linear(3, 3))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def adam(model: nn.Module, **options) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.1, **options)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> list[float]:
    losses = []
    for step in range(n):
        optimizer.zero_grad()
        loss = model(torch.arange(6.0).reshape(2, 3) + step).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save(db, run: str = "r", **made) -> None:
    with StepCheckpointer(db, run=run, every=1, **made) as ckpt:
        ckpt.step()


def state_of(*objects) -> list:
    return [copy.deepcopy(one.state_dict()) for one in objects]


def equal(one, other) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
@pytest.mark.parametrize("grouped", [False, True])
def test_moments_find_their_parameters_in_another_order_and_other_groups(db, wrap, grouped):
    model = Net("a", "b")
    optimizer = adam(model)
    steps(model, optimizer, 3)
    save(db, model=wrap(model), optimizer=optimizer)
    other = Net("b", "a")
    groups = [{"params": other.b.parameters()}, {"params": other.a.parameters()}] if grouped else other.parameters()
    again = torch.optim.Adam(groups, lr=0.7)
    with StepCheckpointer(db, run="r", model=other, optimizer=again, every=9) as ckpt:
        assert ckpt.restore() == 1
    assert steps(other, again, 3) == steps(model, optimizer, 3)


def test_one_group_of_parameters_that_had_different_options_is_refused(db):
    model = Net()
    groups = [{"params": model.a.parameters(), "lr": 0.1}, {"params": model.b.parameters(), "lr": 1}]
    optimizer = torch.optim.Adam(groups)
    steps(model, optimizer, 1)
    save(db, model=model, optimizer=optimizer)
    other = Net()
    before = state_of(other)
    with StepCheckpointer(db, run="r", model=other, optimizer=adam(other), every=9) as ckpt:
        with pytest.raises(StateError, match=r"lr=0\.1 and 1: make the groups as they were"):
            ckpt.restore()
    assert equal(before, state_of(other))


def test_other_parameters_are_refused_by_name(db):
    model = Net("a", "b", "c")
    optimizer = torch.optim.Adam([*model.a.parameters(), *model.b.parameters()])
    steps(model, optimizer, 1)
    save(db, model=model, optimizer=optimizer)
    other = Net("a", "b", "c")
    with StepCheckpointer(
        db, run="r", model=other, optimizer=torch.optim.Adam([*other.a.parameters(), *other.c.parameters()]), every=9
    ) as ckpt:
        with pytest.raises(StateError, match=r"no state for: c\.weight, c\.bias; .*parameters: b\.bias, b\.weight"):
            ckpt.restore()


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


class Picky:
    """Takes its state, and then finds fault with it."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        if self.value == 13:
            raise RuntimeError("13 is unlucky")


KINDS = [
    (lambda m: torch.optim.SGD(m.parameters(), 0.1), halving, r"state of a Adam as optimizer; this one is a SGD"),
    (lambda m: torch.optim.AdamW(m.parameters(), 0.1), halving, r"state of a Adam as optimizer; this one is a AdamW"),
    (adam, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), r"StepLR as scheduler; .* a ExponentialLR"),
    (adam, halving, "extra_, a Picky, refuses its state: RuntimeError: 13 is unlucky"),
]


@pytest.mark.parametrize(("build", "schedule", "why"), KINDS)
def test_what_does_not_fit_changes_nothing(db, build, schedule, why):
    model, picky = Net(), Picky()
    optimizer = adam(model)
    scheduler = halving(optimizer)
    steps(model, optimizer, 2)
    scheduler.step()
    picky.value = 13
    save(db, model=model, optimizer=optimizer, scheduler=scheduler, extra={"extra_": picky})
    other, another = Net(), Picky()
    again = build(other)
    next_ = schedule(again)
    steps(other, again, 1)
    before = state_of(other, again, next_, another)
    with StepCheckpointer(
        db, run="r", model=other, optimizer=again, scheduler=next_, extra={"extra_": another}, every=9
    ) as ckpt:
        with pytest.raises(StateError, match=why):
            ckpt.restore()
    assert equal(before, state_of(other, again, next_, another))


def test_a_scaler_that_was_disabled_when_it_was_saved(db):
    model = Net()
    save(db, model=model, scaler=torch.amp.GradScaler("cpu", enabled=False))
    other = Net()
    before = state_of(other)
    with StepCheckpointer(db, run="r", model=other, scaler=torch.amp.GradScaler("cpu"), every=9) as ckpt:
        with pytest.raises(StateError, match="scaler, a GradScaler, refuses its state"):
            ckpt.restore()
    assert equal(before, state_of(other))


def test_what_was_added_later_starts_fresh_if_asked(db):
    model = Net()
    optimizer = adam(model)
    steps(model, optimizer, 2)
    save(db, model=model, optimizer=optimizer)
    other, ema = Net(), Picky()
    again = adam(other)
    with StepCheckpointer(db, run="r", model=other, optimizer=again, extra={"ema": ema}, every=9) as ckpt:
        with pytest.raises(StateError, match=r"no ema: .*restore\(missing=\"fresh\"\)"):
            ckpt.restore()
        with pytest.warns(UserWarning, match="no ema: this starts as it is"):
            assert ckpt.restore(missing="fresh") == 1
    assert equal(state_of(model, optimizer), state_of(other, again))


def test_two_optimizers_by_name(db):
    model = Net()
    first, second = adam(model.a), adam(model.b)
    for optimizer in (first, second):
        steps(model, optimizer, 2)
    save(db, model=model, optimizer=first, extra={"second": second})
    other = Net("b", "a")
    one, two = adam(other.a), adam(other.b)
    with StepCheckpointer(db, run="r", model=other, optimizer=one, extra={"second": two}, every=9) as ckpt:
        ckpt.restore()
    assert equal(state_of(first, second), state_of(one, two))


def test_a_wrapped_model_is_stored_by_the_names_within(db):
    model = Net()
    save(db, model=nn.DataParallel(torch.compile(model, backend="eager")))
    assert list(db.params.find({"run": "r"}).first().load()) == list(model.state_dict())


def test_a_save_in_inference_mode_leaves_the_next_ones_alone(db):
    model = Net()
    optimizer = adam(model)
    with StepCheckpointer(db, run="r", model=model, optimizer=optimizer, every=1) as ckpt:
        with torch.inference_mode():
            ckpt.step()
        steps(model, optimizer, 1)
        ckpt.step()
        ckpt.step()
    assert equal(dict(model.state_dict()), dict(db.params.find({"run": "r", "step": 3}).first().load()))


def test_a_learner_by_name():
    model = Net("a", "b")
    learner = Learner(model, adam(model), lambda model, batch: model(batch["x"]).sum())
    steps(model, learner.optimizer, 2)
    other = Net("b", "a")
    again = Learner(other, adam(other), lambda model, batch: model(batch["x"]).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert steps(other, again.optimizer, 2) == steps(model, learner.optimizer, 2)
    wrong = Learner(other, torch.optim.SGD(other.parameters(), 0.1), lambda model, batch: 0)
    with pytest.raises(StateError, match="Adam as optimizer; this one is a SGD"):
        wrong.load_state_dict(learner.state_dict())
