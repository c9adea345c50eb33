"""Apply: loads the samples of a table and transforms them, in this process or in worker processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.common.import_paths import import_path, resolve
from tensordb_data.stream.fetch.decode import Column, Decoding, load
from tensordb_data.stream.order.permutation import pass_key
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import materialize
from tensordb_data.stream.transform.function import Transform
from tensordb_data.stream.transform.libraries.choose import library_of
from tensordb_data.stream.transform.libraries.library import Library

if TYPE_CHECKING:
    from tensordb_data.stream.transform.worker_pool import WorkerPool


def position_keys(seed: int, number: int, positions: Iterable[int]) -> list[int]:
    """Make a random key, a 64-bit number, for each position of pass `number`."""
    key = pass_key(seed, number)
    return [pass_key(key, int(position)) for position in positions]


@dataclass(frozen=True)
class OpenTransform:
    """What applies the transform of a stream, in threads or in worker processes. The caller closes it."""

    calls: Transform | WorkerPool
    library: Library

    def close(self) -> None:
        """End the processes that transform, if there are any."""
        self.calls.close()


def library_in(spec: StreamSpec) -> Library | None:
    """How the transform of a stream is called; None if it has none.

    Raises:
        QueryError: It cannot be applied to samples.
    """
    if spec.transform is None:
        return None
    return library_of(resolve(spec.transform) if isinstance(spec.transform, str) else spec.transform)


def open_transform(spec: StreamSpec) -> OpenTransform | None:
    """Open what applies the transform of a stream. None if it has no transform.

    Raises:
        QueryError: The transform cannot be applied to samples.
    """
    library = library_in(spec)
    if library is None or spec.transform is None:
        return None
    if spec.workers:
        from tensordb_data.stream.transform.worker_pool import WorkerPool

        return OpenTransform(WorkerPool(import_path(spec.transform), spec.workers), library)
    return OpenTransform(Transform(library), library)


def load_transformed(
    table: SampleTable,
    reader: BlobReader,
    transform: OpenTransform | None,
    decoding: Decoding,
    stack: bool,
    clock: Clock,
) -> dict[str, Column]:
    """Load the samples of a table, and transform each of them with its random key.

    Args:
        table: the samples.
        reader: of their blobs.
        transform: the transform, if there is one.
        decoding: how fields are decoded, with a random key for each sample if there is a transform; see
            `position_keys`.
        stack: whether values are put into arrays as they come, where that is possible.
        clock: of the task.

    Raises:
        SampleError: a sample cannot be read, decoded or transformed.
        QueryError: the transform sees none of the fields, see `Library.targets`; or a field cannot be decoded so.
        WorkerError: see `WorkerPool.columns`.
    """
    values = load(table, reader, clock, decoding)
    if transform is not None:
        targets = transform.library.targets(table.layout.delivered(decoding.views, decoding.fields))
        return transform.calls.columns(values, len(table), decoding.keys, targets, stack, table.name, clock)
    with clock("decode"):
        return materialize(values, len(table), stack)
