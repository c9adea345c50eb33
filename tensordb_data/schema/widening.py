"""Which fields may take the place of others: those that hold all values of the others, as these are stored."""

from __future__ import annotations

import dataclasses

from tensordb_data.schema.array import Array
from tensordb_data.schema.field import Field
from tensordb_data.schema.scalar import Scalar


def widened(old: Field, new: Field) -> Field | None:
    """The field that takes the values of `new` and reads what was stored as `old`; None if `new` does not hold all of
    the old values, or cannot read them.

    A required field may become optional, an int a float, any value in the index JSON, and any dimension of an array
    free.
    """
    if old.optional and not new.optional:
        return None
    if isinstance(old, Array) and isinstance(new, Array):
        return _widened_array(old, new)
    if dataclasses.replace(old, optional=new.optional) == new:
        return new
    if isinstance(old, Scalar) and isinstance(new, Scalar) and (new.kind == "json" or (old.kind, new.kind) == _EXACT):
        return new
    return None


_EXACT = ("int", "float")  # as far as the values keep their digits, which is looked at


def _widened_array(old: Array, new: Array) -> Array | None:
    if old.dtype != new.dtype:
        return None
    if old.shape is None or new.shape is None:
        holds = new.shape is None
    else:
        holds = len(old.shape) == len(new.shape) and all(
            free is None or free == n for n, free in zip(old.shape, new.shape, strict=True)
        )
    if not holds:
        return None
    return dataclasses.replace(new, was=old.was if new.fixed_shape is None and old.fixed_shape is None else
                               None if new.fixed_shape is not None else old.fixed_shape)  # fmt: skip
