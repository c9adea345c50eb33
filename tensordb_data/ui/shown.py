"""How values are shown: numbers, sizes, times and whatever a document may hold, as text or as HTML that is safe."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from bson import ObjectId, json_util
from markupsafe import Markup

from tensordb_data.common.bson_values import JSON
from tensordb_data.common.sizes import show_size

THIN = "\u202f"
"""Between groups of three digits."""


def grouped(value: int) -> str:
    """A whole number in groups of three digits."""
    return f"{value:,}".replace(",", THIN)


def number_text(value: Any) -> str:
    """A number in four digits; whole numbers in full."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text_of(value)
    if isinstance(value, int):
        return grouped(value)
    if not math.isfinite(value):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return grouped(int(value))
    text = f"{value:.4g}"
    return text if "e" in text or abs(value) < 1e3 else f"{value:,.0f}".replace(",", THIN)


def rounded(value: Any) -> str:
    """An estimate of a number, in two digits."""
    digits = len(str(abs(int(value)))) - 2
    return grouped(round(int(value), -digits) if digits > 0 else int(value))


def caption(values: Mapping[str, Any]) -> str:
    """What a sample without a picture is shown as."""
    return brief(dict(values), 160)


def number(value: Any) -> Markup:
    """A number in four digits, and in full where the pointer rests on it; a dash for none."""
    if value is None:
        return Markup('<span class="none">–</span>')
    return Markup('<span title="{}">{}</span>').format(value, number_text(value))


def size(value: Any) -> Markup:
    """A number of bytes, with a unit."""
    if value is None:
        return number(None)
    return Markup('<span title="{} bytes">{}</span>').format(grouped(int(value)), show_size(value, THIN))


def time(value: Any) -> Markup:
    """A time in UTC; a script makes it a relative one."""
    if not isinstance(value, dt.datetime):
        return number(None)
    utc = value.replace(tzinfo=dt.timezone.utc) if value.tzinfo is None else value.astimezone(dt.timezone.utc)
    absolute = f"{utc:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z", absolute, absolute
    )


def text_of(value: Any, most: int | None = None) -> str:
    """A value of a document as text, at most so many characters of it."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, dt.datetime):
        text = f"{value:%Y-%m-%d %H:%M:%S}"
    elif isinstance(value, ObjectId) or value is None or isinstance(value, bool):
        text = str(value)
    elif isinstance(value, Mapping):
        text = ", ".join(f"{name}={text_of(item, 60)}" for name, item in list(value.items())[:60])
    elif isinstance(value, (list, tuple)):
        text = ", ".join(text_of(item, 60) for item in value[:60])
    else:
        text = str(value)
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def brief(value: Any, most: int = 60) -> str:
    """A value of a document on one short line."""
    return text_of(" ".join(text_of(value).split()), most)


def pretty(value: Any) -> str:
    """A value of a document as indented JSON."""
    options = json_util.RELAXED_JSON_OPTIONS
    return json_util.dumps(value, json_options=options, indent=2, ensure_ascii=False)


def filter_text(filter: Mapping[str, Any]) -> str:
    """A filter as the text of the query box: plain JSON where that says the same."""
    relaxed = json.loads(json_util.dumps(filter, json_options=json_util.RELAXED_JSON_OPTIONS))
    exact = json.loads(json_util.dumps(filter, json_options=JSON))
    plain = json_util.loads(json.dumps(relaxed)) == json_util.loads(json.dumps(exact))
    return json.dumps(relaxed if plain else exact, ensure_ascii=False)


def address(page: str, values: Mapping[str, Any]) -> str:
    """A relative address of a page. What users choose stands in its query, never in its path."""
    given = [(name, value) for name, value in values.items() if value not in (None, "", False)]
    query = urlencode([(name, 1 if value is True else value) for name, value in given], doseq=True, quote_via=quote)
    return f"./{page}?{query}" if query else f"./{page}"
