"""Turn the metrics of a training loop, numbers and short texts, into values that the index can hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tensordb_data.common.bson_values import plain, single
from tensordb_data.errors import SchemaError

_LESS_IS_BETTER = re.compile(
    r"(^|_)(loss|losses|err|error|errors|nll|perplexity|ppl|mse|rmse|mae|wer|cer|fid)(_|$)", re.I
)
_PLAIN = frozenset((float, bool, type(None)))


def less_is_better(name: str) -> bool:
    """Whether a metric of this name is better the less it is, as far as a name tells: a loss or an error."""
    return _LESS_IS_BETTER.search(name) is not None


def scalar(name: str, value: Any) -> Any:
    """`value` as the index can hold it: NumPy, torch and TensorFlow scalars become Python numbers.

    Raises:
        SchemaError: It is neither a number, text, boolean, None or datetime, nor a list of those.
    """
    if type(value) in _PLAIN or (type(value) is str and value.isascii()):
        return value
    if isinstance(value, (list, tuple)):
        return [scalar(name, item) for item in value]
    if isinstance(value, dict):
        raise _refusal(name, "a dict; give each of its entries a name of its own")
    if hasattr(value, "__array__") or hasattr(value, "item"):
        value = _number(name, value)
    return plain(value, lambda text: _refusal(name, text))


def check_names(names: Iterable[str], reserved: frozenset[str]) -> None:
    """Refuses names that cannot be fields at the top of a document.

    Raises:
        SchemaError: One cannot.
    """
    for name in names:
        if not isinstance(name, str) or not name or name[0] == "$" or "." in name or "\0" in name:
            raise SchemaError(f"metric {name!r}: a name is a non-empty string without '.' and not beginning with '$'")
        if not is_text(name):
            raise SchemaError(f"metric {name!r}: a name is valid text; this one has a lone surrogate")
        if name in reserved:
            raise SchemaError(f"metric {name!r}: this name is taken; taken are {', '.join(sorted(reserved))}")


def is_text(value: str) -> bool:
    """Whether a string can be stored: one with a lone surrogate cannot."""
    return value.isascii() or value == value.encode(errors="replace").decode()


def _number(name: str, value: Any) -> Any:
    shape = tuple(getattr(value, "shape", ()))
    size = 1
    for length in shape:
        size *= int(length)
    if size != 1:
        raise _refusal(name, f"an array of shape {shape}; log a number, its mean say, or a list (.tolist())")
    return single(value)


def _refusal(name: str, what: str) -> SchemaError:
    return SchemaError(
        f"metric {name!r}: expected a number, text, boolean, None, datetime or a list of those, found {what}"
    )
