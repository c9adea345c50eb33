"""What `decode=` of a stream can say of a field: give its encoded bytes, or decode it in another way."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tensordb_data.errors import QueryError
from tensordb_data.schema.array import Array
from tensordb_data.schema.binary import Bytes
from tensordb_data.schema.field import BlobField, Buffer, Field


class View(abc.ABC):
    """A way to decode a field. It is a frozen value."""

    draws: ClassVar[bool] = False
    """Whether what it gives depends on random numbers."""

    def check(self, name: str, field: Field) -> None:
        """Refuse a field of which it cannot decode the values.

        Raises:
            QueryError: It is such a one.
        """
        if not self.takes(field):
            raise QueryError(f"decode= says {self!r} of the field {name!r}, {self.advice}. Found: {field!r}")

    @property
    @abc.abstractmethod
    def advice(self) -> str:
        """Which fields it is for, as the second half of a sentence."""

    @abc.abstractmethod
    def takes(self, field: Field) -> bool:
        """Whether it can decode the values of a field."""

    @abc.abstractmethod
    def gives(self, field: Field) -> Field:
        """A field whose decoded values are like those that this gives for `field`."""

    @abc.abstractmethod
    def decode(self, field: BlobField, buf: Buffer, rng: np.random.Generator | None, beside: Any) -> Any:
        """The value whose stored bytes are `buf`.

        Args:
            field: The field.
            buf: The stored bytes.
            rng: Random numbers that depend on the seed, the position and the name of the field alone, if it `draws`.
            beside: The value of the field that `beside` names; None if there is none.

        Raises:
            TensorDBError: The bytes cannot be decoded in this way.
        """

    def beside(self, name: str) -> str | None:
        """A field from which values are decoded faster, where samples have it."""
        return None

    @abc.abstractmethod
    def to_doc(self) -> dict[str, Any] | None:
        """What decides on the values, as plain JSON; None if they are those of the field in another form."""


@dataclasses.dataclass(frozen=True)
class Encoded(View):
    """The bytes as they are stored, which are those of the file. `decode={"image": False}` is the same."""

    @property
    def advice(self) -> str:
        return "and only images, audio, video, volumes, bytes and text have an encoded form; it is delivered as it is"

    def takes(self, field: Field) -> bool:
        return isinstance(field, BlobField) and not isinstance(field, Array)

    def gives(self, field: Field) -> Field:
        return Bytes(optional=field.optional)

    def decode(self, field: BlobField, buf: Buffer, rng: np.random.Generator | None, beside: Any) -> bytes:
        return bytes(buf)

    def to_doc(self) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Like(View):
    """Decoded as a field of the same kind with other arguments, such as `Image("gray")` or `Audio(rate=16_000)`."""

    field: BlobField

    @property
    def advice(self) -> str:
        return "which is of another kind"

    def takes(self, field: Field) -> bool:
        return type(field) is type(self.field) and not isinstance(field, Array)

    def gives(self, field: Field) -> Field:
        return dataclasses.replace(self.field, optional=field.optional)

    def decode(self, field: BlobField, buf: Buffer, rng: np.random.Generator | None, beside: Any) -> Any:
        return self.field.decode(buf)

    def to_doc(self) -> dict[str, Any]:
        return {"like": dataclasses.replace(self.field, optional=False).to_doc()}


Views = Mapping[str, View]


def views_of(decode: Mapping[str, Any] | None) -> tuple[tuple[str, View], ...]:
    """What `decode=` says of fields, by their names, in order.

    Raises:
        QueryError: It is no dict of names and ways to decode.
    """
    if decode is None:
        return ()
    if not isinstance(decode, Mapping) or not all(isinstance(name, str) for name in decode):
        raise QueryError(f'`decode` is a dict of fields, such as {{"image": False}}. Found: {decode!r:.80}')
    found: dict[str, View] = {}
    for name, value in decode.items():
        if value is True:
            continue
        if value is False:
            found[name] = Encoded()
        elif isinstance(value, View):
            found[name] = value
        elif isinstance(value, BlobField):
            found[name] = Like(value)
        else:
            raise QueryError(
                f"`decode` says of a field False (the encoded bytes), True, Scaled(224), Window(seconds=2),"
                f' Clip(frames=16), or a kind such as Image("gray"). Found for {name!r}: {value!r:.80}'
            )
    return tuple(sorted(found.items()))
