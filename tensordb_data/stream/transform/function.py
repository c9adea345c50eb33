"""Transform: calls the user's function on each sample, with random numbers that depend on (seed, position) alone."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tensordb_data.errors import QueryError, SampleError
from tensordb_data.stream.fetch.decode import Column, Values
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import Name, TableBuilder, to_samples

Sample = dict[str, Any]
_TARGETS = ("image", "mask", "masks", "bboxes", "keypoints", "image2", "images", "volume", "mask3d")


class Transform:
    """Calls one user transform from several threads.

    Objects such as albumentations pipelines keep random state between calls. So each thread has its own deep copy of
    the transform. If it cannot be copied, one thread at a time calls it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._kind = _kind(function)
        self._local = threading.local()
        self._lock = threading.Lock()

    def __call__(self, sample: Sample, key: int, name: Name, row: int) -> Sample:
        """The transformed sample.

        Args:
            sample: fields of one sample; the function may change it.
            key: 64-bit number made of (seed, pass, position).
            name: returns how errors speak of the sample in a row.
            row: of the sample.

        Raises:
            SampleError: the function raised, or did not return a dict.
        """
        try:
            with self._copy() as function:
                if self._kind == "albumentations":
                    function.set_random_seed(key & 0xFFFFFFFF)
                    targets = self._targets(function, sample)
                    return {**sample, **function(**targets)}
                if self._kind == "rng":
                    result = function(sample, np.random.Generator(np.random.Philox(key=key)))
                else:
                    result = function(sample)
        except QueryError:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise SampleError(f"{name(row)}: the transform raised {cause}") from error
        if not isinstance(result, Mapping):
            raise SampleError(f"{name(row)}: a transform must return a dict of fields. Found: {type(result).__name__}")
        return dict(result)

    def columns(
        self, values: Mapping[str, Values], m: int, keys: Sequence[int], stack: bool, name: Name, clock: Clock
    ) -> dict[str, Column]:
        """Transform m samples.

        Each sample is decoded, transformed and put into its column before the next one is decoded. Otherwise a large
        image would have left the caches of the processor before it is transformed.

        Args:
            values: m values for each field.
            m: the number of samples.
            keys: for each sample; see `position_keys`.
            stack: whether values are put into arrays as they come, where that is possible.
            name: returns how errors speak of the sample in a row.
            clock: of the task.

        Raises:
            SampleError: a sample cannot be decoded or transformed.
        """
        lap = clock.laps()
        builder = TableBuilder(m, stack, name)
        for row, (sample, key) in enumerate(zip(to_samples(values), keys, strict=True)):
            lap("decode")
            builder.add(self(sample, key, name, row))
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

    def _targets(self, function: Any, sample: Sample) -> Sample:
        known = {*_TARGETS, *getattr(function, "additional_targets", {})}
        for params in ("bbox_params", "keypoint_params"):
            known.update(getattr(getattr(function, "processors", {}).get(params), "label_fields", None) or ())
        targets = {name: value for name, value in sample.items() if name in known}
        if not targets:
            raise QueryError(f"none of the fields {', '.join(sample)} is a target of the pipeline, such as `image`")
        return targets


def _kind(function: Callable[..., Any]) -> str:
    if type(function).__module__.split(".")[0] == "albumentations" or hasattr(function, "set_random_seed"):
        return "albumentations"
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "sample"
    required = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and (parameter.default is parameter.empty or parameter.name == "rng")
    ]
    return "rng" if len(required) >= 2 else "sample"
