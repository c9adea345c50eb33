"""Sharded models: what is refused of them, and which tensors of a saved state are divided in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from tensordb_data.errors import CheckpointError
from tensordb_data.params.apply import pairs_of_model
from tensordb_data.params.names import plain
from tensordb_data.params.table import LeafRow
from tensordb_data.stream.ranks import MODEL_DIMS
from tensordb_data.tensors.divided import is_divided
from tensordb_data.torch.optimizer_state import by_number


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether parameters are distributed tensors: of FSDP2, or of tensor parallelism."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def refuse_fsdp1(model: torch.nn.Module) -> None:
    """Raise if modules are sharded by FSDP1, whose parameters do not say of which part they are.

    Raises:
        CheckpointError: A module is a `FullyShardedDataParallel`. Saved as it is, the optimizer's state of process 0
            would be restored in all processes.
    """
    for name, module in model.named_modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            where = f" in {name}" if name else ""
            raise CheckpointError(
                f"the model is wrapped in FullyShardedDataParallel (FSDP1){where}, whose parameters cannot be saved by"
                " their names: use fully_shard of torch.distributed.fsdp (FSDP2)"
            )


def refuse_other_batches(model: torch.nn.Module, world_size: int | None) -> None:
    """Raise if processes that hold parts of one layer get different batches.

    Args:
        model: The model.
        world_size: How many ranks share the stream; None if that is not known.

    Raises:
        CheckpointError: The model is divided over dimensions that are not for data, and the stream over all processes.
    """
    from torch.distributed.tensor import DTensor

    if world_size is None or world_size == 1 or world_size != dist.get_world_size():
        return
    for parameter in model.parameters():
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        for number, name in enumerate((mesh.mesh_dim_names or ()) if mesh is not None else ()):
            if name in MODEL_DIMS and mesh is not None and mesh.size(number) > 1:
                raise CheckpointError(
                    f"the model is parallel over {name!r}, so that {mesh.size(number)} processes need the same batches,"
                    f" and the stream gives each of {world_size} its own: make it with shard=Shard(mesh=mesh)"
                )


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module within DistributedDataParallel, DataParallel and `torch.compile`, or the model itself."""
    if isinstance(model, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
        return unwrapped(model.module)
    compiled = model._modules.get("_orig_mod")
    return model if compiled is None else unwrapped(compiled)


def pairs_of(
    model: torch.nn.Module, stateful: Mapping[str, Any], parts: Mapping[str, Any]
) -> Iterator[tuple[LeafRow, Any]]:
    """The rows of a saved state whose tensors are divided here, each with a DTensor that is divided so.

    Args:
        model: The model, without wrappers.
        stateful: The optimizers and other objects, by the names of their parts.
        parts: The parts of the set, with a row in place of each tensor.
    """
    yield from pairs_of_model(model.state_dict(), parts["model"])
    parameters = {plain(name): value for name, value in model.named_parameters() if is_divided(value)}
    saved_names = parts.get("training", {}).get("parameters", {})
    for name, value in stateful.items():
        if name not in parts:
            continue
        if isinstance(value, torch.optim.Optimizer):
            state, names = by_number(parts[name], saved_names.get(name))
            own: list[Any] = [one for group in value.param_groups for one in group["params"]]
            if names is not None:  # or by their order, as of a version that noted no names
                flat = [one for group in names for one in group]
                own = [
                    own[at] if one is None else parameters.get(plain(one)) for at, one in enumerate(flat[: len(own)])
                ]
            yield from _of_optimizer(own, state)
        else:
            yield from _alike(value.state_dict(), parts[name])


def _of_optimizer(parameters: Sequence[Any], state: Mapping[str, Any]) -> Iterator[tuple[LeafRow, Any]]:
    """The moments of a parameter are divided as it is."""
    numbers = [number for group in state.get("param_groups", ()) for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=False):
        if not is_divided(parameter):
            continue
        for row in state["state"].get(number, {}).values():
            if isinstance(row, LeafRow) and row.shape == tuple(parameter.shape):
                yield row, parameter


def _alike(own: Any, saved: Any) -> Iterator[tuple[LeafRow, Any]]:
    """What has the same place in two states."""
    if isinstance(saved, LeafRow):
        if is_divided(own) and tuple(own.shape) == saved.shape:
            yield saved, own
    elif isinstance(own, dict) and isinstance(saved, dict):
        for name in own.keys() & saved.keys():
            yield from _alike(own[name], saved[name])
    elif type(own) in (list, tuple) and type(saved) in (list, tuple):
        for mine, theirs in zip(own, saved, strict=False):
            yield from _alike(mine, theirs)
