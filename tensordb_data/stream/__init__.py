"""The stream: query, cursor, plan, order, fetch, decode, transform, batch. The files follow that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.stream.benchmark import Bench, bench
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.mixture.mixture import Mix, mix
from tensordb_data.stream.spec import End, Ragged, Shuffle, StreamSpec, Weights, distributed_rank, field_names

if TYPE_CHECKING:
    from tensordb_data.api.selection import Selection

__all__ = ["Bench", "Mix", "Stream", "StreamSpec", "bench", "mix", "open_stream"]


def open_stream(
    selection: Selection[Any],
    batch_size: int,
    fields: Sequence[str] | None = None,
    *,
    shuffle: Shuffle = False,
    replacement: bool = False,
    weights: Weights | None = None,
    seed: int = 0,
    passes: int | None = None,
    follow: bool = False,
    transform: Callable[..., Any] | str | None = None,
    workers: int = 0,
    ragged: Ragged = "list",
    max_failures: int | float = 0,
    rank: int | None = None,
    world_size: int | None = None,
    end: End = "short",
) -> Stream:
    """A stream over `selection`; the options are those of `Selection.stream`."""
    rank, world_size = distributed_rank(rank, world_size)
    chosen = field_names(fields if fields is not None else selection.query.fields)
    spec = StreamSpec(
        selection.query,
        batch_size,
        chosen,
        shuffle=shuffle,
        replacement=replacement,
        weights=weights,
        seed=seed,
        passes=passes,
        follow=follow,
        transform=transform,
        workers=workers,
        ragged=ragged,
        max_failures=max_failures,
        rank=rank,
        world_size=world_size,
        end=end,
    )
    return Stream(selection.db, spec)
