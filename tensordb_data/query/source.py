"""A query as Python source that makes it again."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

from bson import Binary, DBRef, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS

_BSON = (Binary, DBRef, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp)


def python(found: str, filter: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The source of a Selection: lines with the imports that it needs, and one expression.

    Every value is written as a literal, whatever text it holds.

    Args:
        found: What selects: `"db.data.find"`.
        filter: The filter.
        options: Sort, limit and fields; None where there is none.
    """
    imports: set[str] = set()
    parts = [_source(filter, imports)] if filter else []
    for name, value in options.items():
        if value is not None:
            parts.append(f"{name}={list(value) if isinstance(value, tuple) else value!r}")
    return "\n".join([*sorted(imports), f"{found}({', '.join(parts)})"])


def _source(value: Any, imports: set[str]) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_source(item, imports)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_source(item, imports) for item in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, dt.datetime):
        imports.add("import datetime")
        return repr(value)
    if isinstance(value, DatetimeMS):
        imports.add("from bson.datetime_ms import DatetimeMS")
        return f"DatetimeMS({int(value)})"
    if isinstance(value, _BSON):
        imports.add(f"from bson import {type(value).__name__}")
        return _of_bson(value, imports)
    return repr(value)


def _of_bson(value: Any, imports: set[str]) -> str:
    if isinstance(value, DBRef):
        return f"DBRef({value.collection!r}, {_source(value.id, imports)}, {value.database!r})"
    if isinstance(value, Binary):
        return f"Binary({bytes(value)!r}, {value.subtype})"
    if isinstance(value, Regex):
        return f"Regex({value.pattern!r}, {int(value.flags)})"
    return repr(value)
