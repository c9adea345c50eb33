"""The options of a stream, for all that hand them on, and the group that says which part of it a process delivers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

import numpy as np

from tensordb_data.common.options import OptionGroup, Written
from tensordb_data.errors import QueryError
from tensordb_data.stream.spec import End, Ragged, Shuffle, Weights


@dataclass(frozen=True, kw_only=True)
class Shard(OptionGroup):
    """Which part of a stream this process delivers.

    Raises:
        QueryError: A value is outside its range, only one of `rank` and `world_size` is given, or one option
            contradicts another.
    """

    rank: int | None = None
    """The number of this process among `world_size`. None reads it from torch.distributed or jax.distributed when an
    iteration begins."""
    world_size: int | None = None
    """How many processes share the stream."""
    tail: End = "short"
    """What to do with samples at the end of a pass that do not fill a batch on every rank: `"short"` batches, `"drop"`
    them, or `"pad"` them with samples from the start of the pass."""
    mesh: Any = None
    """A `DeviceMesh` of torch. The ranks of its data dimensions share the stream, and ranks that differ in other
    dimensions alone (tensor, context, pipeline parallel) get the same batches."""
    data_dims: tuple[str, ...] | None = None
    """Which dimensions of the mesh are for data; by default those called dp_replicate, dp_shard, dp and fsdp."""
    group: Any = None
    """The processes that share the stream, where not all do: a process group of torch. Or, where neither torch nor JAX
    knows them, a text that all have and that no other run has, beside `rank` and `world_size`. Through it they agree on
    the data of each pass."""

    def _check(self, written: Written) -> None:
        if self.mesh is not None:
            if not callable(getattr(self.mesh, "get_local_rank", None)):
                raise QueryError(f"{written('mesh')} is a DeviceMesh of torch. Found: {self.mesh!r:.60}")
            for name in ("rank", "world_size", "group"):
                if getattr(self, name) is not None:
                    raise QueryError(f"{written('mesh')} says it all: leave {written(name)} out")
        if self.data_dims is not None:
            if self.mesh is None:
                raise QueryError(f"{written('data_dims')} names dimensions of {written('mesh')}, which is missing")
            given: Any = self.data_dims
            if isinstance(given, str) or not all(isinstance(name, str) for name in given):
                raise QueryError(f'{written("data_dims")} is a tuple of names, ("dp",). Found: {given!r}')
            object.__setattr__(self, "data_dims", tuple(given))
        if isinstance(self.group, str):
            if not self.group:
                raise QueryError(f"{written('group')} is a text that the processes share. Found: {self.group!r}")
        elif self.group is not None:
            if not callable(getattr(self.group, "size", None)):
                raise QueryError(
                    f"{written('group')} is a process group of torch, or a text that the processes share. Found:"
                    f" {self.group!r:.60}"
                )
            if self.rank is not None:
                raise QueryError(f"{written('group')} has ranks of its own: leave {written('rank')} out")
        for name in ("rank", "world_size"):
            if isinstance(value := getattr(self, name), np.integer):
                object.__setattr__(self, name, int(value))
        if (self.rank is None) != (self.world_size is None):
            raise QueryError(
                f"{written('rank')} and {written('world_size')} go together: give both, or neither to read"
                " torch.distributed"
            )
        _whole(written("rank"), self.rank, 0)
        _whole(written("world_size"), self.world_size, 1)
        if self.rank is not None and self.world_size is not None and self.rank >= self.world_size:
            raise QueryError(
                f"{written('rank')} must be below {written('world_size')} ({self.world_size}). Found: {self.rank}"
            )
        if self.tail not in get_args(End):
            raise QueryError(f"{written('tail')} must be one of {', '.join(get_args(End))}. Found: {self.tail!r}")

    @property
    def is_local(self) -> bool:
        """Whether it has objects that exist in this process alone."""
        return self.mesh is not None or (self.group is not None and not isinstance(self.group, str))


class ShardOptions(TypedDict, total=False):
    """How processes share a stream: `shard=Shard(...)`, or its fields by themselves."""

    shard: Shard | None
    """Which part this process delivers."""
    rank: int | None
    """Shorthand of `Shard(rank=)`."""
    world_size: int | None
    """Shorthand of `Shard(world_size=)`."""
    end: End
    """Shorthand of `Shard(tail=)`."""


class Place(TypedDict, total=False):
    """Which part of a stream another process delivers, in the words of a StreamSpec."""

    rank: int
    world_size: int
    end: End


class StreamOptions(ShardOptions, total=False):
    """The options of `Selection.stream` besides `batch_size`. They are described there."""

    fields: Sequence[str] | None
    shuffle: Shuffle
    replacement: bool | None
    weights: Weights | None
    seed: int
    passes: int | None
    follow: bool
    transform: Callable[..., Any] | str | None
    workers: int
    ragged: Ragged
    max_failures: int | float


_SHORTHANDS = {"rank": "rank", "world_size": "world_size", "end": "tail"}


def shard_of(options: ShardOptions) -> Shard:
    """The shard that options name.

    Raises:
        QueryError: A shard is given together with one of its shorthands, or it is none.
    """
    given = {name: value for name, value in options.items() if name in _SHORTHANDS and value is not None}
    shard = options.get("shard")
    if shard is None:
        values = {_SHORTHANDS[name]: value for name, value in given.items()}
        return Shard.spelled(values, {field: f"{name}=" for name, field in _SHORTHANDS.items()})
    if not isinstance(shard, Shard):
        raise QueryError(f"shard= is a Shard(rank=0, world_size=2). Found: {shard!r}")
    for name in given:
        raise QueryError(f"shard= and {name}= are both given: give shard=Shard({_SHORTHANDS[name]}=) alone")
    return shard


def _whole(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise QueryError(f"{name} must be a whole number of at least {least} (and below 2**31). Found: {value!r}")
