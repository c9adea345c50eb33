"""Values as the text that Prometheus reads, version 0.0.4."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tensordb_data.common.telemetry.measures import MEASURES, Measure, Value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNITS = {"By": "bytes", "s": "seconds", "{row}/s": "rows_per_second"}
_ESCAPES = {"\\": r"\\", "\n": r"\n", '"': r"\""}


def exposition(values: Iterable[Value]) -> str:
    """The text; each measure once, with its help and type."""
    by_name: dict[str, list[Value]] = {}
    for value in values:
        by_name.setdefault(value.name, []).append(value)
    lines: list[str] = []
    for name, of in sorted(by_name.items()):
        measure = MEASURES[name]
        shown = prometheus_name(name)
        lines += [f"# HELP {shown} {measure.about}", f"# TYPE {shown} {measure.kind}"]
        lines += [f"{shown}{_labels(value)} {value.number!r}" for value in of]
    return "".join(f"{line}\n" for line in lines)


def prometheus_name(name: str) -> str:
    """The name of a measure in Prometheus: with its unit, and `_total` if it only grows."""
    measure: Measure = MEASURES[name]
    unit = _UNITS.get(measure.unit)
    words = [name.replace(".", "_"), *([unit] if unit and not name.endswith(unit) else [])]
    return "_".join([*words, *(["total"] if measure.kind == "counter" else [])])


def _labels(value: Value) -> str:
    if not value.labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in value.labels) + "}"


def _escaped(text: str) -> str:
    clean = text.encode(errors="replace").decode()  # halves of characters are no UTF-8
    return re.sub(r'[\\\n"]', lambda found: _ESCAPES[found[0]], clean)
