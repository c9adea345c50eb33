"""Give objects their saved states: all of them or none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tensordb_data.errors import StateError
from tensordb_data.params.lineage import name_of


def kind_of(value: Any) -> str:
    """The class of an optimizer, a scheduler or another object with a state; within what Accelerate wraps it in."""
    inner = getattr(value, "optimizer", value) if isinstance(value, torch.optim.Optimizer) else value
    return name_of(inner)


def check_kinds(stateful: Mapping[str, Any], saved: Mapping[str, str], label: str) -> None:
    """Refuse the states of other classes of optimizers, schedulers and whatever else torch has.

    Raises:
        StateError: An object here is of another class than the one that was saved.
    """
    for name, value in stateful.items():
        here, there = kind_of(value), saved.get(name)
        torchs = any(one and one.startswith("torch.") for one in (here, there))
        if there is not None and torchs and here.rpartition(".")[2] != there.rpartition(".")[2]:
            raise StateError(
                f"{label} has the state of a {there.rpartition('.')[2]} as {name}; this one is a "
                f"{here.rpartition('.')[2]}. Make it as it was, or begin another run."
            )


@contextlib.contextmanager
def all_or_none(label: str) -> Iterator[Callable[[str, Any, Any], None]]:
    """Within it, `load(name, object, state)` gives an object its state. An error gives all of them back what they had.

    Raises:
        StateError: An object refuses its state.
    """
    before: list[tuple[Any, Any]] = []

    def load(name: str, value: Any, state: Any) -> None:
        had = value.state_dict()
        # An optimizer makes new tensors and lets go of the old ones. What others do nobody knows.
        before.append((value, had if isinstance(value, torch.optim.Optimizer) else copy.deepcopy(had)))
        try:
            value.load_state_dict(state)
        except Exception as error:
            raise StateError(
                f"{label} does not fit: {name}, a {type(value).__name__}, refuses its state: "
                f"{type(error).__name__}: {error}"
            ) from error

    try:
        yield load
    except BaseException:
        for value, had in reversed(before):
            with contextlib.suppress(Exception):
                value.load_state_dict(had)
        raise
