"""Transform: calls the user's function on each sample, with random numbers that depend on (seed, position) alone."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tensordb_data.errors import QueryError, SampleError
from tensordb_data.stream.fetch.decode import Column, Values
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import Name, to_samples
from tensordb_data.stream.transform.libraries.library import Library, Sample, Targets
from tensordb_data.stream.transform.returned import FieldTypes, TableBuilder


class Transform:
    """Calls one user transform from several threads.

    Objects such as albumentations pipelines keep random state between calls. So each thread has its own deep copy of
    the transform. If it cannot be copied, one thread at a time calls it.

    Args:
        library: How the transform is called.
    """

    def __init__(self, library: Library) -> None:
        self._library, self._function = library, library.function
        self._types = FieldTypes()
        self._local = threading.local()
        self._lock = threading.Lock()

    def __call__(self, sample: Sample, key: int, targets: Targets, name: Name, row: int) -> Sample:
        """The transformed sample.

        Args:
            sample: fields of one sample; the function may change it.
            key: 64-bit number made of (seed, pass, position).
            targets: what the fields are; see `Library.targets`.
            name: returns how errors speak of the sample in a row.
            row: of the sample.

        Raises:
            SampleError: the function raised, or did not return a dict.
        """
        try:
            with self._copy() as function, _torch_random(key):
                result = self._library.call(function, sample, key, targets)
        except QueryError:
            raise
        except SampleError as error:
            raise SampleError(f"{name(row)}, {error}") from error
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise SampleError(f"{name(row)}: the transform raised {cause}") from error
        if not isinstance(result, Mapping):
            raise SampleError(f"{name(row)}: a transform must return a dict of fields. Found: {type(result).__name__}")
        return dict(result)

    def columns(
        self,
        values: Mapping[str, Values],
        m: int,
        keys: Sequence[int],
        targets: Targets,
        stack: bool,
        name: Name,
        clock: Clock,
    ) -> dict[str, Column]:
        """Transform m samples.

        Each sample is decoded, transformed and put into its column before the next one is decoded. Otherwise a large
        image would have left the caches of the processor before it is transformed.

        Args:
            values: m values for each field.
            m: the number of samples.
            keys: for each sample; see `position_keys`.
            targets: what the fields are; see `Library.targets`.
            stack: whether values are put into arrays as they come, where that is possible.
            name: returns how errors speak of the sample in a row.
            clock: of the task.

        Raises:
            SampleError: a sample cannot be decoded or transformed, or the transform returns what it may not.
        """
        lap = clock.laps()
        builder = TableBuilder(m, stack, name, self._types)
        for row, (sample, key) in enumerate(zip(to_samples(values), keys, strict=True)):
            lap("decode")
            builder.add(self(sample, key, targets, name, row))
            lap("transform")
        return builder.columns()

    def close(self) -> None:
        """Does nothing: a `Transform` holds no process."""

    @contextmanager
    def _copy(self) -> Iterator[Any]:
        if not hasattr(self._local, "function"):
            try:
                self._local.function = copy.deepcopy(self._function)
            except Exception:  # a class may refuse a copy by any error
                self._local.function = None
        if self._local.function is not None:
            yield self._local.function
        else:
            with self._lock:
                yield self._function


def _torch_random(key: int) -> AbstractContextManager[Any]:
    """What is drawn from PyTorch depends on the key, if PyTorch is there to draw from."""
    if "torch" not in sys.modules:
        return nullcontext()
    from tensordb_data.stream.transform.libraries.torch_random import KeyedRandom

    return KeyedRandom(key)
