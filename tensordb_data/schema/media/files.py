"""The bytes of an encoded file, as a user gives them."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from tensordb_data.errors import SchemaError
from tensordb_data.schema.field import Buffer, describe


def given_bytes(value: Any, what: str) -> Buffer:
    """The bytes in `value`, which is bytes or a `pathlib.Path`.

    Args:
        value: What the user gave.
        what: What was expected, for the message, such as "a sound".

    Raises:
        SchemaError: It is neither, or the file cannot be read.
    """
    if isinstance(value, pathlib.Path):
        try:
            return value.read_bytes()
        except OSError as error:
            raise SchemaError(f"expected {what}, found {value}: {error.strerror}") from None
    if isinstance(value, memoryview):
        return bytes(value)
    if not isinstance(value, (bytes, bytearray)):
        raise SchemaError(f"expected the bytes of {what}, or a pathlib.Path to one, found {describe(value)}")
    return value


def limit(variable: str, usual: int) -> int:
    """The most of something that a file may claim: the number in an environment variable, or the usual one.

    Raises:
        SchemaError: The variable holds no number.
    """
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise SchemaError(f"expected a number in the environment variable {variable}, found {text!r}")
    return int(text) if text else usual
