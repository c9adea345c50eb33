"""Apply saved parameters to a model: all of them or none, or those that fit, with a report of the others."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import StateError
from tensordb_data.params.apply_keras import into_keras
from tensordb_data.params.difference import Difference, refuse
from tensordb_data.params.load import Divided
from tensordb_data.params.names import Renames, choose, match_names, plain
from tensordb_data.params.table import LeafRow
from tensordb_data.tensors.divided import is_divided
from tensordb_data.tensors.leaf import import_torch


def apply_to(
    model: Any, state: Any, label: str, strict: bool = True, *, prefix: str = "", rename: Renames = ()
) -> Difference:
    """Loads `state` into a torch module or a Keras model.

    Raises:
        StateError: It does not fit and `strict` is true, or nothing of it fits; the model is unchanged.
    """
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if prefix or rename:
        if not isinstance(state, Mapping):
            raise StateError(f"prefix= and rename= need names, and {label} is a {type(state).__name__} without")
        state = {new: state[old] for new, old in choose(state, prefix, rename, label).items()}
    # a Keras model is a torch module too where Keras runs on torch
    if keras is not None and isinstance(model, keras.Model):
        return into_keras(model, state, label, strict)
    if torch is not None and isinstance(model, torch.nn.Module):
        return into_torch(model, state, label, strict)
    raise StateError(
        f"expected a torch.nn.Module or a keras.Model to load into, found a {type(model).__name__}; "
        "load() gives the arrays themselves"
    )


def compare_torch(model: Any, state: Any, label: str) -> tuple[Difference, dict[str, Any]]:
    """How a torch module and a state differ, and what the state has for the module, by its names.

    Raises:
        StateError: The state is not one of a module at all.
    """
    if not isinstance(state, Mapping):
        raise StateError(
            f"{label} is a {type(state).__name__}, not a dict of tensors: it was not saved from a state_dict()"
        )
    own = model.state_dict()
    pairs = match_names(own, state)
    values = {name: state[saved] for name, saved in pairs.items()}
    _fill_tied(own, values)
    shapes = {
        name: f"{name}: expected {tuple(own[name].shape)}, found {tuple(np.shape(value))}"
        for name, value in values.items()
        if _has_shape(own[name]) and tuple(np.shape(value)) != tuple(own[name].shape)
    }
    there = set(pairs.values())
    difference = Difference(
        missing=tuple(name for name in own if name not in values),
        unexpected=tuple(str(name) for name in state if name not in there),
        shapes=tuple(shapes.values()),
        matched=tuple(name for name in values if name not in shapes),
    )
    return difference, {name: value for name, value in values.items() if name not in shapes}


def pairs_of_model(own: Mapping[str, Any], saved: Any) -> Iterator[tuple[LeafRow, Any]]:
    """The tensors of a set that are divided over processes in a model here; see `params.load.Divided`.

    Args:
        own: The state of the model.
        saved: The part of the set, with a row in place of each tensor.
    """
    for name, theirs in match_names(own, saved).items() if isinstance(saved, Mapping) else ():
        row = saved[theirs]
        if is_divided(own[name]) and isinstance(row, LeafRow) and row.shape == tuple(own[name].shape):
            yield row, own[name]


def divided_in(model: Any, label: str, prefix: str, rename: Renames) -> Divided | None:
    """Which tensors of a set a model divides over processes (FSDP2); None if it does not.

    Arguments are those of `apply_to`.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module) or not any(map(is_divided, model.parameters())):
        return None
    own = model.state_dict()

    def divided(parts: Mapping[str, Any]) -> Iterator[tuple[LeafRow, Any]]:
        saved = parts["model"]
        if isinstance(saved, Mapping) and (prefix or rename):
            saved = {new: saved[old] for new, old in choose(saved, prefix, rename, label).items()}
        return pairs_of_model(own, saved)

    return divided


def check_torch(model: Any, state: Any, label: str) -> None:
    """Refuses a state that does not fit a torch module, before anything is changed."""
    refuse(model, label, compare_torch(model, state, label)[0])


def into_torch(model: Any, state: Any, label: str, strict: bool = True) -> Difference:
    """`model.load_state_dict` of torch tensors or numpy arrays."""
    difference, values = compare_torch(model, state, label)
    refuse(model, label, difference, strict)
    torch = import_torch()
    tensors: OrderedDict[str, Any] = OrderedDict(
        (
            name,
            torch.as_tensor(np.asarray(value)) if hasattr(value, "__array__") and not torch.is_tensor(value) else value,
        )
        for name, value in values.items()
    )
    tensors._metadata = _versions(model.state_dict(), state)  # type: ignore[attr-defined]
    try:
        model.load_state_dict(tensors, strict=strict)
    except RuntimeError as error:
        raise StateError(f"{label} does not fit this {type(model).__name__}: {error}") from error
    return difference


def _has_shape(value: Any) -> bool:
    """Whether the shape of a value is known: a module that is built lazily takes any."""
    is_lazy = sys.modules["torch"].nn.parameter.is_lazy
    return not is_lazy(value) and hasattr(value, "shape")


def _fill_tied(own: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Give tensors that are tied to others in the model what the state has for those."""
    if len(values) == len(own):
        return
    places = {place: name for name in values if (place := _place(own[name])) is not None}
    for name in own:
        if name not in values and (place := _place(own[name])) in places:
            values[name] = values[places[place]]


def _place(value: Any) -> Any:
    """Where a tensor lies in memory; None if it lies nowhere."""
    torch = sys.modules["torch"]
    if not torch.is_tensor(value) or not _has_shape(value) or value.is_meta or not value.numel():
        return None
    if value.layout is not torch.strided or hasattr(type(value), "__tensor_flatten__"):
        return None
    return value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.device


def _versions(own: Any, state: Any) -> Mapping[str, Any]:
    """The versions of the modules that wrote a state, by the names of the modules here.

    With them a module reads what an earlier version of it has saved. A module of which they are not known is taken to
    be of the version that is here.
    """
    here: Mapping[str, Any] = getattr(own, "_metadata", {})
    saved: Mapping[str, Any] = getattr(state, "_metadata", {})
    by_plain = {plain(name): about for name, about in saved.items()}
    return OrderedDict((name, saved.get(name, by_plain.get(plain(name), about))) for name, about in here.items())
