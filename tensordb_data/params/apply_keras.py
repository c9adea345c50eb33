"""Apply saved arrays to the variables of a Keras model, by name where they have names that last."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tensordb_data.errors import StateError
from tensordb_data.params.difference import Difference, refuse

_NUMBERED = re.compile(r"_\d+(?=/|$|_)")


def into_keras(model: Any, state: Any, label: str, strict: bool = True) -> Difference:
    """Give a Keras model its weights.

    By the names of `variable_names`, if the state has such names. By order and shape, if it is a list, or has the
    names that Keras numbers anew in each process.
    """
    variables, names = model.weights, variable_names(model)
    values = paired(variables, names, state, label)
    if isinstance(values, Mapping):
        return _assign_named(model, dict(zip(names, variables, strict=True)), values, label, strict)
    return assign(model, variables, values, label, strict)


def paired(variables: Sequence[Any], names: Sequence[str], state: Any, label: str) -> Mapping[str, Any] | Sequence[Any]:
    """What a state has for some variables: by name; or a list by order, if its names do not last.

    Raises:
        StateError: It is neither.
    """
    if isinstance(state, Mapping):
        if not variables or set(state) & set(names):
            return state
        paths = [variable.path for variable in variables]
        same = [_NUMBERED.sub("", str(name)) for name in state] == [_NUMBERED.sub("", path) for path in paths]
        return list(state.values()) if same else state
    if not isinstance(state, Sequence) or isinstance(state, (str, bytes)):
        raise StateError(
            f"{label} is a {type(state).__name__}, not a list of arrays: it was not saved from get_weights()"
        )
    return state


def variable_names(model: Any) -> list[str]:
    """Names of the weights of a Keras model, in the order of `model.weights`, that are the same in every process.

    A layer is named by the attribute that holds it, or by its own name, or, where Keras has made this up, by its class
    and its number among those of this class beside it.
    """
    named: dict[int, str] = {}
    for name, variable in _walk(model, "", set()):
        named.setdefault(id(variable), name)
    names: list[str] = []
    taken: set[str] = set()
    for variable in model.weights:
        name = named.get(id(variable), variable.path)
        name = name if name not in taken else f"{name}#{len(names)}"
        taken.add(name)
        names.append(name)
    return names


def _walk(layer: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    children = list(_children(layer))
    below = {id(variable) for _, child in children for variable in child.weights}
    for variable in layer.weights:
        if id(variable) not in below:
            yield f"{prefix}{variable.name}", variable
    for name, child in children:
        yield from _walk(child, f"{prefix}{name}/", seen)


def _children(layer: Any) -> Iterator[tuple[str, Any]]:
    keras = sys.modules["keras"]
    if {"Sequential", "Functional"} & {kind.__name__ for kind in type(layer).__mro__}:
        yield from _labelled(layer.layers)
        return
    internal = vars(keras.Model()).keys() | vars(keras.layers.Layer()).keys()
    for name, value in list(vars(layer).items()):
        if name in internal or name.startswith("_self_"):  # TensorFlow keeps lists of its own
            continue
        if isinstance(value, keras.layers.Layer):
            yield name, value
        elif isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"{name}/{key}", one) for key, one in items if isinstance(one, keras.layers.Layer))


def _labelled(layers: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    counts: dict[str, int] = {}
    for layer in layers:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
        if re.fullmatch(rf"{re.escape(kind)}(_\d+)?", layer.name):
            counts[kind] = counts.get(kind, 0) + 1
            yield f"{kind}#{counts[kind]}", layer
        else:
            yield layer.name, layer


def assign(model: Any, variables: Sequence[Any], values: Sequence[Any], label: str, strict: bool = True) -> Difference:
    """Gives Keras variables their values, by order and shape, all or none; those that fit if not `strict`."""
    difference = _compare_keras(variables, values, label)
    refuse(model, label, difference, strict)
    for variable, value in zip(variables, values, strict=False):
        if tuple(variable.shape) == tuple(value.shape):
            variable.assign(np.asarray(value))
    return difference


def check_keras(model: Any, variables: Sequence[Any], values: Sequence[Any], label: str) -> None:
    """Refuses values that do not fit Keras variables, before anything is changed."""
    refuse(model, label, _compare_keras(variables, values, label))


def named_values(model: Any, variables: Sequence[Any], names: Sequence[str], state: Any, label: str) -> Sequence[Any]:
    """The values of a state for some variables, in their order.

    Raises:
        StateError: They do not fit; nothing was changed.
    """
    values = paired(variables, names, state, label)
    if isinstance(values, Mapping):
        refuse(model, label, _compare_named(dict(zip(names, variables, strict=True)), values, label))
        return [values[name] for name in names]
    check_keras(model, variables, values, label)
    return values


def _assign_named(
    model: Any, variables: Mapping[str, Any], values: Mapping[str, Any], label: str, strict: bool
) -> Difference:
    difference = _compare_named(variables, values, label)
    refuse(model, label, difference, strict)
    for name in difference.matched:
        variables[name].assign(np.asarray(values[name]))
    return difference


def _compare_named(variables: Mapping[str, Any], values: Mapping[str, Any], label: str) -> Difference:
    _check_arrays(list(values.values()), label)
    shapes = {
        name: f"{name}: expected {tuple(variable.shape)}, found {tuple(values[name].shape)}"
        for name, variable in variables.items()
        if name in values and tuple(variable.shape) != tuple(values[name].shape)
    }
    return Difference(
        missing=tuple(name for name in variables if name not in values),
        unexpected=tuple(str(name) for name in values if name not in variables),
        shapes=tuple(shapes.values()),
        matched=tuple(name for name in variables if name in values and name not in shapes),
    )


def _compare_keras(variables: Sequence[Any], values: Sequence[Any], label: str) -> Difference:
    _check_arrays(values, label)
    names = [variable.path for variable in variables]
    pairs = list(zip(names, variables, values, strict=False))
    return Difference(
        missing=tuple(names[len(values) :]),
        unexpected=tuple(
            f"array {i} of shape {tuple(value.shape)}" for i, value in enumerate(values) if i >= len(names)
        ),
        shapes=tuple(
            f"{name}: expected {tuple(variable.shape)}, found {tuple(value.shape)}"
            for name, variable, value in pairs
            if tuple(variable.shape) != tuple(value.shape)
        ),
        matched=tuple(name for name, variable, value in pairs if tuple(variable.shape) == tuple(value.shape)),
    )


def _check_arrays(values: Sequence[Any], label: str) -> None:
    if any(value is None or not hasattr(value, "shape") for value in values):
        raise StateError(f"{label} holds more than arrays: it was not saved from get_weights()")
