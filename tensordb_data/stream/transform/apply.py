"""Apply: a stream's transform on the samples of a block, in this process or in others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.common.import_paths import import_path, resolve
from tensordb_data.stream.fetch.decode import Column, load
from tensordb_data.stream.order.permutation import pass_key
from tensordb_data.stream.plan.sample_table import Block
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import whole
from tensordb_data.stream.transform.function import Transform

if TYPE_CHECKING:
    from tensordb_data.stream.transform.worker_pool import Workers


def position_keys(seed: int, number: int, positions: Iterable[int]) -> list[int]:
    """A 64-bit number for each position of pass `number`."""
    key = pass_key(seed, number)
    return [pass_key(key, int(position)) for position in positions]


def open_transform(spec: StreamSpec) -> Transform | Workers | None:
    """What applies the transform of a stream: this process, or workers of its own. To be closed."""
    if spec.transform is None:
        return None
    if spec.workers:
        from tensordb_data.stream.transform.worker_pool import Workers

        return Workers(import_path(spec.transform), spec.workers)
    return Transform(resolve(spec.transform) if isinstance(spec.transform, str) else spec.transform)


def transformed(
    block: Block,
    reader: BlobReader,
    transform: Transform | Workers | None,
    keys: Sequence[int],
    stack: bool,
    clock: Clock,
) -> dict[str, Column]:
    """The values of the samples in `block`, each transformed with the random numbers of its key.

    Args:
        block: the samples.
        reader: of their blobs.
        transform: the transform, if there is one.
        keys: for each sample, if there is a transform; see `position_keys`.
        stack: whether values are put into arrays as they come, where that is possible.
        clock: of the task.

    Raises:
        SampleError: a sample cannot be read, decoded or transformed.
        WorkerError: see `Workers.columns`.
    """
    values = load(block, reader, clock)
    if transform is not None:
        return transform.columns(values, len(block), keys, stack, block.name, clock)
    with clock("decode"):
        return whole(values, len(block), stack)
