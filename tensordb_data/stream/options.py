"""The options of a stream, for all that hand them on, and the group that says which part of it a process delivers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import numpy as np

from tensordb_data.common.options import OptionGroup, Written
from tensordb_data.errors import QueryError
from tensordb_data.stream.spec import End, Ragged, Shuffle, Weights
from tensordb_data.stream.tokens import Long, Tokens

if TYPE_CHECKING:
    from tensordb_data.schema import BlobField
    from tensordb_data.schema.views.view import View


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


class TokenOptions(TypedDict, total=False):
    """How batches are made of sequences: `tokens=Tokens(...)`, or its fields by themselves."""

    tokens: Tokens | None
    """How batches are made of sequences."""
    batch_tokens: int | None
    """Shorthand of `Tokens(n=)`."""
    pack: int | None
    """Shorthand of `Tokens(pack=)`."""
    length: str | None
    """Shorthand of `Tokens(length=)`."""
    long: Long
    """Shorthand of `Tokens(long=)`."""


class BatchOptions(ShardOptions, TokenOptions, total=False):
    """What is in a batch, and whose it is."""

    decode: Mapping[str, bool | View | BlobField] | None
    """How fields are decoded: `{"image": False}` for encoded bytes, `Scaled(224)`, `Window`, `Clip`, or a kind."""


class StreamOptions(BatchOptions, total=False):
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
_OF_TOKENS = {"batch_tokens": "n", "pack": "pack", "length": "length", "long": "long"}


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


def tokens_of(options: TokenOptions) -> Tokens | None:
    """How batches are made of sequences, as options say; None if they say nothing of it.

    Raises:
        QueryError: `tokens` is given together with one of its shorthands, or is none; or a value is wrong.
    """
    given = {name: value for name, value in options.items() if name in _OF_TOKENS and value is not None}
    tokens = options.get("tokens")
    if tokens is not None and not isinstance(tokens, Tokens):
        raise QueryError(f"tokens= is a Tokens(n=32_768) or a Tokens(pack=4096). Found: {tokens!r}")
    if tokens is not None:
        for name in given:
            raise QueryError(f"tokens= and {name}= are both given: give tokens=Tokens({_OF_TOKENS[name]}=) alone")
        return tokens
    if not given:
        return None
    values = {_OF_TOKENS[name]: value for name, value in given.items()}
    return Tokens.spelled(values, {field: f"{name}=" for name, field in _OF_TOKENS.items()})


def units_of(batch_size: int | None, tokens: Tokens | None) -> int:
    """The batch size of a spec.

    Raises:
        QueryError: `batch_size` is missing, or `Tokens(n=)` is given as well.
    """
    if tokens is not None and tokens.n is not None:
        if batch_size is not None:
            raise QueryError(
                f"batch_tokens= takes the place of batch_size=: give one of them. Found: batch_size={batch_size!r} and"
                f" batch_tokens={tokens.n}"
            )
        return 1
    if batch_size is None:
        what = "the rows of a batch" if tokens is not None else "the samples of a batch, or batch_tokens="
        raise QueryError(f"a stream needs a batch_size=, {what}")
    return batch_size


def _whole(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise QueryError(f"{name} must be a whole number of at least {least} (and below 2**31). Found: {value!r}")
