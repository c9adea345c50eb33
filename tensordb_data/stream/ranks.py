"""Ranks: which processes share a stream. They are found when an iteration begins, in the process of the loop."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from tensordb_data.common.boards import Board, jax_board, named_board, torch_board
from tensordb_data.errors import QueryError
from tensordb_data.stream.options import Shard

DATA_DIMS = ("dp_replicate", "dp_shard", "dp", "fsdp")
"""Dimensions of a device mesh whose ranks share the data."""
MODEL_DIMS = ("tp", "cp", "pp", "sp", "ep")
"""Dimensions of a device mesh whose ranks hold parts of a model, and get the same batches."""


@dataclass(frozen=True)
class Members:
    """The processes that share a stream, as this one sees them."""

    rank: int = 0
    world_size: int = 1
    peers: bool = False
    """Whether other processes go over the same passes: they share their batches, or get the same ones."""
    board: Board | None = None
    """Where they agree; None if nothing is known of them but their number."""


@dataclass(frozen=True)
class Divider:
    """Something that divides among the ranks what a stream delivers, so that the stream must not."""

    name: str
    """Its name, for the user."""
    everywhere: bool
    """Whether each rank iterates over all of the stream. If not, one rank does it for all."""


def find_members(shard: Shard, divider: Divider | None = None) -> Members:
    """Find the processes that share a stream.

    Args:
        shard: What the user has said.
        divider: What divides the stream above, if anything does.

    Raises:
        QueryError: What the user has said, what divides the stream and the environment contradict each other.
    """
    members = _found(shard)
    if divider is None:
        return members
    if shard.rank is not None and members.world_size > 1:
        raise QueryError(
            f"{divider.name} divides among the ranks what this stream delivers, and rank={members.rank},"
            f" world_size={members.world_size} would divide it once more: leave rank= and world_size= out, or make the"
            " loader with tensordb_data.torch.accelerate.prepare(accelerator, loader)"
        )
    return Members(0, 1, members.peers and divider.everywhere, members.board)


def _found(shard: Shard) -> Members:
    group = shard.group
    if shard.mesh is not None:
        return _of_mesh(shard.mesh, shard.data_dims)
    if shard.rank is not None and shard.world_size is not None:
        found = _running()
        known = found is not None and (found.rank, found.world_size) == (shard.rank, shard.world_size)
        board = named_board(group) if isinstance(group, str) else found.board if known and found else None
        return Members(shard.rank, shard.world_size, shard.world_size > 1, board)
    if group is not None and not isinstance(group, str):
        return _of_group(group)
    found = _running()
    if found is None:
        _check_environment()
        if group is not None:
            raise QueryError(
                "Shard(group=) names processes, and neither torch.distributed nor jax.distributed numbers them: give"
                " Shard(rank=, world_size=, group=)"
            )
        return Members()
    return found if group is None else Members(found.rank, found.world_size, found.peers, named_board(group))


def _running() -> Members | None:
    """The processes of torch.distributed, or of jax.distributed; None if neither runs with several."""
    return _torch() or _jax()


def _distributed() -> Any:
    """torch.distributed, if it runs."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def _torch() -> Members | None:
    distributed = _distributed()
    if distributed is None or distributed.get_world_size() == 1:
        return None
    return Members(int(distributed.get_rank()), int(distributed.get_world_size()), True, torch_board())


def _jax() -> Members | None:
    jax = sys.modules.get("jax")
    distributed = getattr(jax, "distributed", None)
    if jax is None or distributed is None or not distributed.is_initialized() or jax.process_count() == 1:
        return None
    internal = sys.modules.get("jax._src.distributed")
    client = getattr(getattr(internal, "global_state", None), "client", None)
    return Members(int(jax.process_index()), int(jax.process_count()), True, jax_board(client))


def _of_mesh(mesh: Any, data_dims: tuple[str, ...] | None) -> Members:
    """The ranks of the data dimensions of a mesh. Ranks that differ in others alone get the same batches."""
    names = tuple(getattr(mesh, "mesh_dim_names", None) or ())
    if data_dims is not None:
        if missing := [name for name in data_dims if name not in names]:
            raise QueryError(
                f"Shard(data_dims=) names {missing[0]!r}. The dimensions of the mesh: {', '.join(names) or 'no names'}"
            )
    elif unknown := [name for name in names if name not in (*DATA_DIMS, *MODEL_DIMS)]:
        raise QueryError(
            f"the mesh has a dimension {unknown[0]!r}, which may share the data or not: name those that do,"
            f" Shard(mesh=, data_dims=(...)). Known are {', '.join(DATA_DIMS)} for the data, and"
            f" {', '.join(MODEL_DIMS)}"
        )
    elif not names and mesh.ndim > 1:
        raise QueryError("the dimensions of Shard(mesh=) need names: init_device_mesh(mesh_dim_names=('dp', 'tp'))")
    if mesh.get_coordinate() is None:
        raise QueryError("this process is not in Shard(mesh=)")
    shares = data_dims if data_dims is not None else DATA_DIMS
    rank, world = 0, 1
    for number in range(mesh.ndim):
        if not names or names[number] in shares:
            rank, world = rank * mesh.size(number) + mesh.get_local_rank(number), world * mesh.size(number)
    return Members(int(rank), int(world), mesh.size() > 1, torch_board() if _distributed() else None)


def _of_group(group: Any) -> Members:
    distributed = _distributed()
    if distributed is None:
        raise QueryError("Shard(group=) is a process group, and torch.distributed does not run in this process")
    rank, world = int(distributed.get_rank(group)), int(distributed.get_world_size(group))
    if rank < 0:
        raise QueryError("this process is not in the process group Shard(group=)")
    return Members(rank, world, world > 1, torch_board())


def _check_environment() -> None:
    """Raise if a launcher has started several processes, and nothing has told them apart yet."""
    world = os.environ.get("WORLD_SIZE", "")
    if world.isdecimal() and int(world) > 1:
        raise QueryError(
            f"WORLD_SIZE={world} is in the environment, and torch.distributed does not run yet: each process would"
            " deliver all samples. Begin to iterate when it runs (after init_process_group(), Accelerator(), or within"
            " fit), or give Shard(rank=, world_size=, group=). For all samples in each process: rank=0, world_size=1"
        )
