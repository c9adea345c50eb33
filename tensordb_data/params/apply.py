"""Apply saved parameters to a model: all of them or none, or those that fit, with a report of the others."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensordb_data.errors import StateError
from tensordb_data.tensors.leaf import import_torch

_SHOWN = 5  # names in a message, per kind of difference


@dataclass(frozen=True)
class Difference:
    """How a model and a checkpoint differ. It is false if they do not."""

    missing: tuple[str, ...] = ()
    """Names in the model that the checkpoint does not have."""
    unexpected: tuple[str, ...] = ()
    """Names in the checkpoint that the model does not have."""
    shapes: tuple[str, ...] = ()
    """Names in both whose shapes differ, with what was expected and what was found."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        named = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.shapes))
        return ". ".join(
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
            for what, names in named
            if names
        )


def apply_to(model: Any, state: Any, label: str, strict: bool = True) -> Difference:
    """Loads `state` into a torch module or a Keras model.

    Raises:
        StateError: It does not fit and `strict` is true; the model is unchanged.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    # a Keras model is a torch module too where Keras runs on torch
    if keras is not None and isinstance(model, keras.Model):
        return into_keras(model, state, label, strict)
    if torch is not None and isinstance(model, torch.nn.Module):
        return into_torch(model, state, label, strict)
    raise StateError(
        f"expected a torch.nn.Module or a keras.Model to load into, found a {type(model).__name__}; "
        "load() gives the arrays themselves"
    )


def compare_torch(model: Any, state: Any, label: str) -> Difference:
    """How a torch module and a state differ.

    Raises:
        StateError: The state is not one of a module at all.
    """
    if not isinstance(state, Mapping):
        raise StateError(
            f"{label} is a {type(state).__name__}, not a dict of tensors: it was not saved from a state_dict()"
        )
    expected = model.state_dict()
    return Difference(
        tuple(name for name in expected if name not in state),
        tuple(str(name) for name in state if name not in expected),
        tuple(
            f"{name}: expected {tuple(value.shape)}, found {tuple(np.shape(state[name]))}"
            for name, value in expected.items()
            if name in state and hasattr(value, "shape") and tuple(np.shape(state[name])) != tuple(value.shape)
        ),
    )


def check_torch(model: Any, state: Any, label: str) -> None:
    """Refuses a state that does not fit a torch module, before anything is changed."""
    _refuse(model, label, compare_torch(model, state, label))


def into_torch(model: Any, state: Any, label: str, strict: bool = True) -> Difference:
    """`model.load_state_dict` of torch tensors or numpy arrays."""
    difference = compare_torch(model, state, label)
    if strict:
        _refuse(model, label, difference)
    torch = import_torch()
    left_out = {text.split(":", 1)[0] for text in difference.shapes}
    tensors = {
        name: torch.as_tensor(np.asarray(value))
        if hasattr(value, "__array__") and not torch.is_tensor(value)
        else value
        for name, value in state.items()
        if name not in left_out
    }
    try:
        model.load_state_dict(tensors, strict=strict)
    except RuntimeError as error:
        raise StateError(f"{label} does not fit this {type(model).__name__}: {error}") from error
    return difference


def into_keras(model: Any, state: Any, label: str, strict: bool = True) -> Difference:
    """`model.set_weights`: by order and shape, since Keras numbers the names of layers anew in each process."""
    values = list(state.values()) if isinstance(state, Mapping) else state
    if not isinstance(values, Sequence):
        raise StateError(
            f"{label} is a {type(state).__name__}, not a list of arrays: it was not saved from get_weights()"
        )
    return assign(model, model.weights, values, label, strict)


def assign(model: Any, variables: Sequence[Any], values: Sequence[Any], label: str, strict: bool = True) -> Difference:
    """Gives Keras variables their values, by order and shape, all or none; those that fit if not `strict`."""
    difference = _compare_keras(variables, values, label)
    if strict:
        _refuse(model, label, difference)
    for variable, value in zip(variables, values, strict=False):
        if tuple(variable.shape) == tuple(value.shape):
            variable.assign(np.asarray(value))
    return difference


def check_keras(model: Any, variables: Sequence[Any], values: Sequence[Any], label: str) -> None:
    """Refuses values that do not fit Keras variables, before anything is changed."""
    _refuse(model, label, _compare_keras(variables, values, label))


def _compare_keras(variables: Sequence[Any], values: Sequence[Any], label: str) -> Difference:
    if any(value is None or not hasattr(value, "shape") for value in values):
        raise StateError(f"{label} holds more than arrays: it was not saved from get_weights()")
    names = [variable.path for variable in variables]
    return Difference(
        tuple(names[len(values) :]),
        tuple(f"array {i} of shape {tuple(value.shape)}" for i, value in enumerate(values) if i >= len(names)),
        tuple(
            f"{name}: expected {tuple(variable.shape)}, found {tuple(value.shape)}"
            for name, variable, value in zip(names, variables, values, strict=False)
            if tuple(variable.shape) != tuple(value.shape)
        ),
    )


def _refuse(model: Any, label: str, difference: Difference) -> None:
    if difference:
        raise StateError(f"{label} does not fit this {type(model).__name__}. {difference}.")
