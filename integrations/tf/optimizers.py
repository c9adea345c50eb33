"""The optimizers of a Keras model: the one that it was compiled with, and those that it holds besides, as GANs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import keras

from tensordb_data.errors import CheckpointError, StateError
from tensordb_data.params.apply_keras import named_values, variable_names

MAIN = "optimizer"
"""The name of the one that a model was compiled with, and of its part in a checkpoint."""
OTHERS = "optimizers"
"""The part of the others: their variables by name, by the attributes that hold them."""


def optimizers_of(model: Any) -> dict[str, Any]:
    """The optimizers of a model by the attributes that hold them, the one that it was compiled with first.

    Raises:
        CheckpointError: It has none.
    """
    main = getattr(model, MAIN, None)
    found = {} if main is None else {MAIN: main}
    for name, value in vars(model).items():
        if isinstance(value, keras.optimizers.Optimizer) and all(value is not one for one in found.values()):
            found[name] = value
    if not found:
        raise CheckpointError("the model has no optimizer: compile it first")
    return found


def steps_of(model: Any) -> int:
    """The steps of the optimizer that has made the most."""
    return max(int(read(optimizer.iterations)) for optimizer in optimizers_of(model).values())


def read(variable: Any) -> Any:
    """Read a variable, also one that a tf.distribute strategy mirrors, which NumPy cannot read."""
    return keras.ops.convert_to_numpy(variable)


def save_optimizers(model: Any) -> dict[str, Any]:
    """The parts of a training state that have the variables of the optimizers."""
    values = {
        name: dict(zip(_slot_names(model, one), map(read, one.variables), strict=True))
        for name, one in optimizers_of(model).items()
    }
    parts: dict[str, Any] = {MAIN: values.pop(MAIN, {})}
    return {**parts, OTHERS: values} if values else parts


def kinds(model: Any) -> dict[str, Any]:
    """What a training state notes of the optimizers: their classes."""
    names = {name: type(one).__name__ for name, one in optimizers_of(model).items()}
    found: dict[str, Any] = {MAIN: names.pop(MAIN, None)}
    return {**found, OTHERS: names} if names else found


def find_values(model: Any, parts: Mapping[str, Any], label: str) -> tuple[list[Any], list[Any]]:
    """The variables of all optimizers, and what a training state has for them. Optimizers are built as they were.

    Raises:
        StateError: The state does not fit; or the model has no variables yet.
    """
    if not model.built and not _is_built(model):
        raise StateError(
            "the model has no variables yet: give it an Input, or call model.build(input_shape), before restore"
        )
    here, training, others = optimizers_of(model), parts["training"], parts.get(OTHERS, {})
    if differing := sorted({*here} ^ {*others, *([MAIN] if training.get(MAIN) else [])}):
        where = "the model has" if differing[0] in here else "the checkpoint has"
        raise StateError(f"{label}: {where} an optimizer {differing[0]!r}, and the other side has not")
    variables: list[Any] = []
    values: list[Any] = []
    for name, optimizer in here.items():
        kind = training.get(MAIN) if name == MAIN else training.get(OTHERS, {}).get(name)
        if kind != type(optimizer).__name__:
            what = "this model has" if name == MAIN else f"{name} of this model is"
            raise StateError(f"{label} was saved with the optimizer {kind}; {what} {type(optimizer).__name__}.")
        state = parts[MAIN] if name == MAIN else others[name]
        _build(model, optimizer, state, everything=name == MAIN)
        variables += optimizer.variables
        values += named_values(model, optimizer.variables, _slot_names(model, optimizer), state, label)
    return variables, values


def _is_built(model: Any) -> bool:
    """Whether all layers are, of a model that has no `call` of its own."""
    layers = list(model._flatten_layers(include_self=False, recursive=True))
    return bool(layers) and all(layer.built for layer in layers)


def _build(model: Any, optimizer: Any, state: Any, everything: bool) -> None:
    """Make the variables of an optimizer, for the weights that the state has something of."""
    if optimizer.built:
        return
    weights = list(model.trainable_variables)
    if isinstance(state, Mapping):
        slots = [str(name).rpartition(":")[0] for name in state]
        names = dict(zip(map(id, model.weights), variable_names(model), strict=True))
        known = [weight for weight in weights if names.get(id(weight)) in slots]
        if not any(slots):
            return  # it was not used
        weights = weights if everything else known
    strategy = getattr(model, "distribute_strategy", None)
    with nullcontext() if strategy is None else strategy.scope():
        optimizer.build(weights)


def _slot_names(model: Any, optimizer: Any) -> Sequence[str]:
    """Names of the variables of an optimizer: by the weight that each belongs to, as `variable_names` has it."""
    weights = zip(variable_names(model), model.weights, strict=True)
    # Keras names them by the path of the weight, in which it has numbered the layers
    paths = ((weight.path.replace("/", "_") + "_", name) for name, weight in weights)
    flat = sorted(paths, key=lambda pair: -len(pair[0]))
    names: list[str] = []
    for variable in optimizer.variables:
        own = variable.path.rpartition("/")[2]
        found = next(((path, name) for path, name in flat if own.startswith(path)), None)
        name = own if found is None else f"{found[1]}:{own[len(found[0]) :]}"
        names.append(name if name not in names else f"{name}#{len(names)}")
    return names
