"""What every kind of field has in common."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import SchemaError
from tensordb_data.schema.missing import is_missing

Buffer = bytes | bytearray | memoryview
Rows = npt.NDArray[np.uint8]
Element = tuple[str | None, tuple[int | None, ...] | None]


@dataclasses.dataclass(frozen=True, repr=False)
class Field(abc.ABC):
    """One field of a dataset's schema: what values it takes and how they are stored.

    Fields are values: compare them, put them in sets, write them as JSON with `to_doc`.
    """

    optional: bool = dataclasses.field(default=False, kw_only=True)
    """Whether a sample may leave the field out, or give `None`, or `pd.NA` and `pd.NaT`, which mean the same."""

    is_blob: ClassVar[bool]
    """True: values are stored as blobs. False: they live in the index, where queries see them."""

    def __repr__(self) -> str:
        # As one writes it: without defaults, and by name from the first that was left out.
        shown: list[str] = []
        own = [field for field in dataclasses.fields(self) if field.name not in ("optional", "was")]
        for i, field in enumerate(own):
            value = getattr(self, field.name)
            if value != field.default:
                shown.append(f"{value!r}" if len(shown) == i else f"{field.name}={value!r}")
        if self.optional:
            shown.append("optional=True")
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def fixed_nbytes(self) -> int | None:
        """Bytes of every encoded value, or None when they differ from sample to sample."""
        return None

    @property
    def element(self) -> Element:
        """Dtype and shape of one decoded value; a None dtype means a Python object."""
        return None, None

    def check(self, value: Any) -> None:
        """Accept `value` or say what is wrong with it.

        Raises:
            SchemaError: with what was expected and what was found, but not the field's name, which the
                caller knows.
        """
        if self.optional and is_missing(value):
            return
        self._check(value)

    @abc.abstractmethod
    def to_doc(self) -> dict[str, Any]:
        """The field as plain JSON; `field_from_doc` reads it back."""

    @abc.abstractmethod
    def _check(self, value: Any) -> None: ...

    def _doc(self, **parts: Any) -> dict[str, Any]:
        return {**parts, "optional": True} if self.optional else parts


@dataclasses.dataclass(frozen=True, repr=False)
class BlobField(Field):
    """A field whose values are stored as blobs."""

    is_blob: ClassVar[bool] = True

    @abc.abstractmethod
    def encode(self, value: Any) -> Buffer:
        """The bytes to store for `value`; they may share its memory.

        Raises:
            SchemaError: the value does not fit the field.
        """

    @abc.abstractmethod
    def decode(self, buf: Buffer) -> Any:
        """The value whose stored bytes are `buf`; shares no memory with it.

        Raises:
            CorruptBlobError: the bytes are not what `encode` writes.
        """

    def stored_alike(self, other: BlobField) -> bool:
        """Whether the values of another field are decoded in the same way."""
        return self == other

    def lengths(self, nbytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """How long values are, by the bytes that they are stored with: int64[m]. None if the bytes do not say.

        A length is that of the first dimension, or the number of bytes. If no value has so many bytes, it is negative.
        """
        return None

    def encode_rows(self, values: Any) -> Rows | None:
        """The encoded form of n values, uint8[n, size], or None where sizes may differ."""
        return None

    def decode_rows(self, rows: Rows) -> npt.NDArray[Any]:
        """The values whose stored bytes are the rows of uint8[m, size], as one array; may share their memory."""
        raise NotImplementedError(f"{self!r} has no fixed size: decode its values one at a time")


def doc_value(doc: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """A key of a field document; a missing one without default is a malformed schema."""
    if key in doc:
        return doc[key]
    if default is not None:
        return default
    raise SchemaError(f"malformed schema: expected the key {key!r} in {dict(doc)!r}")


def describe(value: Any) -> str:
    """A short text that says what a value is, for error messages; never the whole value."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{type(value).__name__} of {dtype} {_shape(shape)}"
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes" + (f" beginning {bytes(value[:8])!r}" if value else "")
    if value is not None and is_missing(value):
        return f"a missing value ({value})"
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    return f"{type(value).__name__} {text[:60]}".rstrip()


def _shape(shape: Any) -> str:
    try:
        return str(tuple(int(n) for n in shape))
    except (TypeError, ValueError):
        return str(shape)
