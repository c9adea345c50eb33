"""Sharded models: gathered into one state to be saved, and scattered again, by torch's own state-dict functions.

https://docs.pytorch.org/docs/stable/distributed.checkpoint.html#torch.distributed.checkpoint.state_dict.get_state_dict
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from tensordb_data.errors import CheckpointError, StateError
from tensordb_data.stream.ranks import MODEL_DIMS


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


def gather(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Gather the full state in process 0, by the names of the parameters. All processes must call it.

    Returns:
        The state, in host memory; it is empty in the other processes.
    """
    # This import takes a second. A program without sharded models does not need it.
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = {"model": dict(get_model_state_dict(model, options=options))}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=options)
    return state


def is_by_name(optimizer_state: Mapping[str, Any]) -> bool:
    """Whether the state of an optimizer has the names of its parameters, as `gather` makes it, and no numbers."""
    groups = optimizer_state.get("param_groups", ())
    return any(isinstance(name, str) for group in groups for name in group["params"])


def scatter(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, parts: Mapping[str, Any], label: str
) -> None:
    """Load a full state into a model, sharded or not, and its optimizer."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    if optimizer is not None and not is_by_name(parts["optimizer"]):
        raise StateError(
            f"{label} has the state of an optimizer of a model that was not sharded, by numbers and not by names: "
            "restore it without optimizer=, into a model that is not sharded, or load only its parameters "
            "(ParameterSet.load_into, before sharding)."
        )
    set_model_state_dict(model, dict(parts["model"]), options=options)
    if optimizer is not None:
        set_optimizer_state_dict(model, optimizer, parts["optimizer"], options=options)
