"""Apply: loads the samples of a table and transforms them, in this process or in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.common.import_paths import import_path, resolve
from tensordb_data.stream.fetch.decode import Column, load
from tensordb_data.stream.order.permutation import pass_key
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import materialize
from tensordb_data.stream.transform.function import Transform

if TYPE_CHECKING:
    from tensordb_data.stream.transform.worker_pool import WorkerPool


def position_keys(seed: int, number: int, positions: Iterable[int]) -> list[int]:
    """Make a random key, a 64-bit number, for each position of pass `number`."""
    key = pass_key(seed, number)
    return [pass_key(key, int(position)) for position in positions]


def open_transform(spec: StreamSpec) -> Transform | WorkerPool | None:
    """Open what applies the transform of a stream: a `Transform`, or a `WorkerPool`. The caller closes it.

    Returns:
        None if the stream has no transform.
    """
    if spec.transform is None:
        return None
    if spec.workers:
        from tensordb_data.stream.transform.worker_pool import WorkerPool

        return WorkerPool(import_path(spec.transform), spec.workers)
    return Transform(resolve(spec.transform) if isinstance(spec.transform, str) else spec.transform)


def load_transformed(
    table: SampleTable,
    reader: BlobReader,
    transform: Transform | WorkerPool | None,
    keys: Sequence[int],
    stack: bool,
    clock: Clock,
) -> dict[str, Column]:
    """Load the samples of a table, and transform each of them with its random key.

    Args:
        table: the samples.
        reader: of their blobs.
        transform: the transform, if there is one.
        keys: for each sample, if there is a transform; see `position_keys`.
        stack: whether values are put into arrays as they come, where that is possible.
        clock: of the task.

    Raises:
        SampleError: a sample cannot be read, decoded or transformed.
        WorkerError: see `WorkerPool.columns`.
    """
    values = load(table, reader, clock)
    if transform is not None:
        return transform.columns(values, len(table), keys, stack, table.name, clock)
    with clock("decode"):
        return materialize(values, len(table), stack)
