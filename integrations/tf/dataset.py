"""query_dataset: the samples of a query, as a `tf.data.Dataset`.

`from_generator` takes a fixed time for each element. So the generator stacks several batches into one array for each
field, and tf.data slices them again.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tensorflow as tf

from tensordb_data.api.selection import Selection, streamed
from tensordb_data.common.options import suggesting
from tensordb_data.errors import NotFoundError, QueryError, SampleError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.options import StreamOptions
from tensordb_data.tf.workers import place_in_cluster

if TYPE_CHECKING:
    from typing_extensions import Unpack

_BYTES = 4 << 20
_BATCHES = 64

Batch = dict[str, Any]


@suggesting(StreamOptions)
def query_dataset(
    source: Selection[Any] | Stream, batch_size: int | None = None, **options: Unpack[StreamOptions]
) -> tf.data.Dataset:
    """Make a `tf.data.Dataset` of the batches of a stream. A batch is a dict of tensors of shape [batch, ...].

    Its `element_spec` is static. The dtype and shape of each field come from the schema; dimensions in which samples
    differ are unknown. With a transform, they come from a first batch. Text and bytes are `tf.string`. The batch
    dimension is known when `end` is "drop" or "pad", unless batches are made of sequences (`batch_tokens`, `pack`).

    Each iteration begins at the position of the stream, and does not move it. With `passes=None`, the default, the
    dataset is infinite: `model.fit(dataset, steps_per_epoch=..., epochs=...)` goes on through all epochs. After the
    last batch of `passes=1`, Keras warns that the input ran out of data. The number of batches is known only at the
    end, because samples may be deleted meanwhile.

    The next pass that is begun sees data that has changed. tf.data reads ahead of the loop, by up to two stacks of 64
    batches or 4 MB; of small data this can be several passes. A stream that was pinned (`Stream.pin`) stays pinned.

    Under `tf.distribute.MultiWorkerMirroredStrategy`, `$TF_CONFIG` says which worker this process is, and each worker
    gets its own batches: TensorFlow's own sharding is turned off (`AutoShardPolicy.OFF`). Workers cannot agree on data
    that is committed while they start, unless they share a text, `shard=Shard(group="run-17")`.

    Args:
        source: a stream; or a Selection, which needs `batch_size`.
        batch_size: samples in a batch. Not with a stream, nor with `batch_tokens`.
        options: of `Selection.stream`: `fields`, `shuffle`, `seed`, `passes`, `transform`, … .

    Raises:
        QueryError: an option is out of its range, or a field has no tensor form.
        TypeError: there is no such option; the message names the nearest one.
        NotFoundError: no sample matches, and the shape of a field is known only from a sample.
    """
    stream = streamed(source, batch_size, options)
    signature = _signature(stream)

    def stacks() -> Generator[Batch, None, None]:
        if (place := place_in_cluster()) is not None:
            stream._number_ranks(*place)
        stream._begin_iteration()
        batches = cast(Generator[Batch, None, None], iter(stream.shard(0, 1)))
        with closing(batches):
            yield from _stacks(batches, signature)

    stacked = {name: tf.TensorSpec([None, *spec.shape], spec.dtype) for name, spec in signature.items()}
    dataset = tf.data.Dataset.from_generator(stacks, output_signature=stacked)
    dataset = dataset.prefetch(1).flat_map(tf.data.Dataset.from_tensor_slices)
    if stream.spec.world_size > 1 or place_in_cluster() is not None:
        # The stream has divided the batches. tf.distribute would divide them once more.
        options_ = tf.data.Options()
        options_.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = dataset.with_options(options_)
    if stream.spec.passes is None:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return dataset


def _signature(stream: Stream) -> dict[str, tf.TensorSpec]:
    spec = stream.spec
    rows = None if spec.end == "short" or spec.tokens is not None else spec.batch_size
    elements = stream.element_spec()
    unknown = any(dtype is None for dtype, _ in elements.values())
    first = _first(stream) if unknown else {}
    signature = {}
    for name, (dtype, shape) in elements.items():
        if dtype is None:
            dtype, shape = _form(name, first[name])
        signature[name] = tf.TensorSpec([rows, *shape], _dtype(name, dtype))
    return signature


def _first(stream: Stream) -> Batch:
    with closing(cast(Generator[Batch, None, None], iter(stream.shard(0, 1)))) as batches:
        for batch in batches:
            return batch
    raise NotFoundError(f"nothing matches {stream.spec.query!r}, so that the form of its fields is not known")


def _form(name: str, column: Any) -> tuple[str, tuple[int | None, ...]]:
    """Find the dtype and shape of one sample of a field, if the schema does not have them."""
    if isinstance(column, np.ndarray):
        return column.dtype.str, (None,) * (column.ndim - 1)
    if all(isinstance(item, (str, bytes)) for item in column):
        return "O", ()
    raise _no_tensor(name, column)


def _dtype(name: str, dtype: str) -> tf.DType:
    try:
        return tf.string if dtype == "O" else tf.as_dtype(np.dtype(dtype))
    except TypeError as error:
        raise QueryError(
            f"field {name!r}: TensorFlow has no dtype for {np.dtype(dtype)}; convert it in a transform, or leave it out"
            " with `fields`"
        ) from error


def _stacks(batches: Generator[Batch, None, None], signature: dict[str, tf.TensorSpec]) -> Generator[Batch, None, None]:
    """Stack batches of equal shapes. The first stacks have few batches, so that the first batch comes early."""
    group: list[Batch] = []
    most = 1
    for batch in batches:
        arrays = {name: _array(name, batch[name], spec) for name, spec in signature.items()}
        if group and any(group[0][name].shape != array.shape for name, array in arrays.items()):
            yield _stack(group)
            group = []
        group.append(arrays)
        if len(group) >= most:
            yield _stack(group)
            group = []
            size = sum(array.nbytes for array in arrays.values())
            most = min(2 * most, _BATCHES, max(1, _BYTES // max(1, size)))
    if group:
        yield _stack(group)


def _stack(group: list[Batch]) -> Batch:
    if len(group) == 1:
        return {name: array[None] for name, array in group[0].items()}
    return {name: np.stack([arrays[name] for arrays in group]) for name in group[0]}


def _array(name: str, column: Any, spec: tf.TensorSpec) -> np.ndarray[Any, Any]:
    if not isinstance(column, np.ndarray):
        if not all(isinstance(item, (str, bytes)) for item in column):
            raise _no_tensor(name, column)
        array = np.empty(len(column), dtype=object)
        array[:] = column
        column = array
    if not spec.shape.is_compatible_with(column.shape):
        raise SampleError(
            f"field {name!r}: expected batches of shape {spec.shape}, as in the first, found {column.shape}; return"
            " one shape from the transform"
        )
    return cast("np.ndarray[Any, Any]", column)


def _no_tensor(name: str, column: Any) -> QueryError:
    arrays = [item for item in column if isinstance(item, np.ndarray)]
    if arrays:
        found = " and ".join(str(list(shape)) for shape in sorted({item.shape for item in arrays})[:2])
        return QueryError(
            f"field {name!r}: the arrays of one batch differ in shape ({found}), and a tensor has one; give the"
            ' stream ragged="pad", resize them in a transform, or leave the field out with `fields`'
        )
    kinds = ", ".join(sorted({type(item).__name__ for item in column}))
    return QueryError(
        f"field {name!r}: {kinds} values have no tensor form; convert them in a transform, or leave the field out with"
        " `fields`"
    )
