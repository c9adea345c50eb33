"""The state of an optimizer by the names of its parameters, so that it finds them again wherever they are declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tensordb_data.errors import StateError
from tensordb_data.params.names import match_names, plain

_Names = list[list[str | None]]


class ParameterNames:
    """The names of the parameters of optimizers. They are looked up again when an optimizer has others."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._found: dict[int, tuple[list[list[int]], _Names]] = {}

    def of(self, optimizer: Any) -> _Names:
        """See `parameter_names`."""
        ids = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
        known = self._found.get(id(optimizer))
        if known is None or known[0] != ids:
            known = self._found[id(optimizer)] = ids, parameter_names(self._model, optimizer)
        return known[1]


def parameter_names(model: torch.nn.Module, optimizer: Any) -> _Names:
    """The name of each parameter of each group of an optimizer; None for one that the model does not have."""
    names = {id(parameter): plain(name) for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def by_number(
    state: Mapping[str, Any], names: Sequence[Sequence[str | None]] | None
) -> tuple[Mapping[str, Any], Sequence[Sequence[str | None]] | None]:
    """A state with numbers for its parameters, and their names.

    A state that torch's own functions have gathered (sets of sharded models of version 0.1) has names in it.
    """
    groups = state.get("param_groups", ())
    flat = [name for group in groups for name in group["params"]]
    if not any(isinstance(name, str) for name in flat):
        return state, names
    number_of = {name: number for number, name in enumerate(flat)}
    numbered = [{**group, "params": [number_of[name] for name in group["params"]]} for group in groups]
    values = {number_of[name]: value for name, value in state["state"].items()}
    return {**state, "state": values, "param_groups": numbered}, [list(group["params"]) for group in groups]


def in_order_of(
    optimizer: Any, names: _Names, state: Mapping[str, Any], saved: Sequence[Sequence[str | None]] | None, label: str
) -> Mapping[str, Any]:
    """A saved state of an optimizer with its parameters in the order and the groups that an optimizer has here.

    Args:
        optimizer: The optimizer here.
        names: Its `parameter_names`.
        state: Its `state_dict()` as it was saved.
        saved: Its `parameter_names` as they were saved; None if they were not.
        label: The set in words.

    Returns:
        What `optimizer.load_state_dict` takes. Without names, the state as it is.

    Raises:
        StateError: The parameters are others, or parameters that form one group here had different options.
    """
    groups = state["param_groups"]
    ours, theirs = [len(group) for group in names], [len(group["params"]) for group in groups]
    own, before = _flat(names), _flat(saved or [])
    named = bool(before) and None not in own and None not in before and len(set(own)) == len(own)
    if not named:
        if ours != theirs:
            raise _other(optimizer, label, f"its parameter groups have {theirs} parameters, those here {ours}")
        return state
    pairs = match_names([str(name) for name in own], [str(name) for name in before])
    missing = [name for name in own if name not in pairs]
    unexpected = sorted({str(name) for name in before} - set(pairs.values()))
    if missing or unexpected:
        raise _other(optimizer, label, "; ".join(
            f"{what}: {', '.join(map(str, some[:5]))}{', …' if len(some) > 5 else ''}"
            for what, some in (("it has no state for", missing), ("it has states for other parameters", unexpected))
            if some
        ))  # fmt: skip
    numbers = [number for group in groups for number in group["params"]]
    number_of = dict(zip(before, numbers, strict=True))
    group_of = {number: group for group in groups for number in group["params"]}
    values: dict[int, Any] = {}
    made: list[dict[str, Any]] = []
    for group in names:
        from_numbers = [number_of[pairs[str(name)]] for name in group]
        options = _options(optimizer, [group_of[number] for number in from_numbers], label)
        start = sum(len(one["params"]) for one in made)
        made.append({**options, "params": list(range(start, start + len(group)))})
        there = enumerate(from_numbers, start)
        values.update({number: state["state"][old] for number, old in there if old in state["state"]})
    return {**state, "state": values, "param_groups": made}


def _options(optimizer: Any, groups: Sequence[Mapping[str, Any]], label: str) -> dict[str, Any]:
    """The options of the groups that the parameters of one group come from, which have to be the same."""
    own = ("params", "param_names")
    found = [{name: value for name, value in group.items() if name not in own} for group in groups]
    for other in found[1:]:
        if differing := [name for name in found[0] if other.get(name) != found[0][name]]:
            name = differing[0]
            raise _other(
                optimizer, label,
                f"parameters of one group here were in groups with {name}={found[0][name]!r} and {other.get(name)!r}: "
                "make the groups as they were",
            )  # fmt: skip
    return found[0] if found else {}


def _other(optimizer: Any, label: str, why: str) -> StateError:
    return StateError(f"{label} does not fit this {type(optimizer).__name__}: {why}.")


def _flat(names: Sequence[Sequence[str | None]]) -> list[str | None]:
    return [name for group in names for name in group]
