"""Apply: saved parameters into a model, all of them or none."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensordb_data.checkpoint.leaves import import_torch
from tensordb_data.errors import StateError

_SHOWN = 5  # names in a message, per kind of difference


def apply_to(model: Any, state: Any, label: str) -> None:
    """Loads `state` into a torch module or a Keras model.

    Raises:
        StateError: It does not fit; the model is unchanged.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if torch is not None and isinstance(model, torch.nn.Module):
        into_torch(model, state, label)
    elif keras is not None and isinstance(model, keras.Model):
        into_keras(model, state, label)
    else:
        raise StateError(
            f"expected a torch.nn.Module or a keras.Model to load into, found a {type(model).__name__}; "
            "load() gives the arrays themselves"
        )


def check_torch(model: Any, state: Any, label: str) -> None:
    """Refuses a state that does not fit a torch module, before anything is changed."""
    if not isinstance(state, Mapping):
        raise StateError(
            f"{label} is a {type(state).__name__}, not a dict of tensors: it was not saved from a state_dict()"
        )
    expected = model.state_dict()
    shapes = [
        f"{name}: expected {tuple(expected[name].shape)}, found {tuple(np.shape(state[name]))}"
        for name in expected
        if name in state
        and hasattr(expected[name], "shape")
        and tuple(np.shape(state[name])) != tuple(expected[name].shape)
    ]
    _report(model, label, [n for n in expected if n not in state], [str(n) for n in state if n not in expected], shapes)


def into_torch(model: Any, state: Any, label: str) -> None:
    """`model.load_state_dict`, strictly, of torch tensors or numpy arrays."""
    check_torch(model, state, label)
    torch = import_torch()
    tensors = {
        name: torch.as_tensor(np.asarray(value))
        if hasattr(value, "__array__") and not torch.is_tensor(value)
        else value
        for name, value in state.items()
    }
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise StateError(f"{label} does not fit this {type(model).__name__}: {error}") from error


def into_keras(model: Any, state: Any, label: str) -> None:
    """`model.set_weights`: by order and shape, since Keras numbers the names of layers anew in each process."""
    values = list(state.values()) if isinstance(state, Mapping) else state
    if not isinstance(values, Sequence):
        raise StateError(
            f"{label} is a {type(state).__name__}, not a list of arrays: it was not saved from get_weights()"
        )
    assign(model, model.weights, values, label)


def assign(model: Any, variables: Sequence[Any], values: Sequence[Any], label: str) -> None:
    """Gives Keras variables their values, by order and shape, all or none."""
    check_keras(model, variables, values, label)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(np.asarray(value))


def check_keras(model: Any, variables: Sequence[Any], values: Sequence[Any], label: str) -> None:
    """Refuses values that do not fit Keras variables, before anything is changed."""
    if any(value is None or not hasattr(value, "shape") for value in values):
        raise StateError(f"{label} holds more than arrays: it was not saved from get_weights()")
    names = [variable.path for variable in variables]
    shapes = [
        f"{name}: expected {tuple(variable.shape)}, found {tuple(value.shape)}"
        for name, variable, value in zip(names, variables, values, strict=False)
        if tuple(variable.shape) != tuple(value.shape)
    ]
    extra = [f"array {i} of shape {tuple(value.shape)}" for i, value in enumerate(values) if i >= len(names)]
    _report(model, label, names[len(values) :], extra, shapes)


def _report(model: Any, label: str, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str]) -> None:
    found = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if found:
        raise StateError(f"{label} does not fit this {type(model).__name__}. {'. '.join(found)}.")
