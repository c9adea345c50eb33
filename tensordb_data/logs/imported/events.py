"""Events of TensorBoard: what one record of an event file says, read without TensorFlow and TensorBoard.

Event    1 wall_time f64 | 2 step | 4 graph_def | 5 Summary | 6 log_message | 8 run_metadata | 9 meta_graph
Summary  1 Value*: 1 tag | 2 f32 | 4 image | 5 HistogramProto | 6 audio | 8 TensorProto | 9 metadata
metadata 1 plugin: 1 name | 2 content (of hparams: the configuration, and how the run ended)
"""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

import numpy as np

from tensordb_data.common.wire.protobuf import fields, signed, varint
from tensordb_data.errors import CorruptBlobError
from tensordb_data.logs.arrays import Logged
from tensordb_data.logs.imported.values import histogram

Part = int | memoryview

_GRAPHS = {4: "graphs", 6: "messages", 8: "run metadata", 9: "graphs"}
_MEDIA = {3: "old values", 4: "images", 6: "audio"}
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1", 17: "<u2", 19: "<f2",
           22: "<u4", 23: "<u8"}  # fmt: skip
_STRING, _BFLOAT16 = 7, 14
_LISTS = {5: "<f4", 6: "<f8"}
_INTEGERS = (7, 10, 11, 16, 17)
_MOST = 1 << 16  # numbers of a tensor that are looked at
_ENDS = {1: "ended", 2: "failed", 3: "lost"}


@dataclasses.dataclass
class Event:
    """What an event says."""

    time: float | None = None
    step: int = 0
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    status: str | None = None
    began: float | None = None
    ended: float | None = None


def parse_event(data: bytes, plugins: dict[str, str]) -> Event:
    """What an event says.

    Args:
        data: The record.
        plugins: The kinds of the tags so far, which is added to: only the first value of a tag names it.

    Raises:
        CorruptBlobError: It is no event.
    """
    event = Event()
    try:
        for number, value in fields(data):
            if number == 1:
                event.time = _double(value)
            elif number == 2 and isinstance(value, int):
                event.step = signed(value)
            elif number in _GRAPHS:
                event.left_out.append(_GRAPHS[number])
            elif number == 5 and not isinstance(value, int):
                for each, summary in fields(value):
                    if each == 1 and not isinstance(summary, int):
                        _take(event, summary, plugins)
    except (IndexError, ValueError, struct.error, TypeError, OverflowError) as error:
        raise CorruptBlobError(f"expected an event of TensorBoard, found something else: {error}") from None
    return event


def _take(event: Event, summary: memoryview, plugins: dict[str, str]) -> None:
    parts = dict(fields(summary))
    tag = _text(parts.get(1, memoryview(b"")))
    plugin, content = _plugin(parts.get(9))
    if plugin and len(plugins) < 100_000:
        plugins.setdefault(tag, plugin)
    plugin = plugin or plugins.get(tag, "")
    if plugin == "hparams":
        _hparams(event, content)
    elif 2 in parts:
        event.values[tag] = _float(parts[2])
    elif 5 in parts:
        found = _histogram(parts[5])
        _put(event, tag, found, "histograms that are empty or not finite")
    elif 8 in parts:
        tensor = _tensor(parts[8])
        if plugin == "text":
            tag = tag.removesuffix("/text_summary")
            _put(event, tag, tensor if isinstance(tensor, str) else None, "texts in tables")
        elif plugin == "histograms":
            _put(event, tag, _buckets(tensor), "histograms that are empty or not finite")
        elif plugin in ("", "scalars"):
            number = tensor.item() if isinstance(tensor, np.ndarray) and tensor.size == 1 else tensor
            _put(event, tag, None if isinstance(number, np.ndarray) else number, "tensors")
        else:
            event.left_out.append(plugin if plugin.isascii() and len(plugin) < 40 else "values of other plugins")
    else:
        event.left_out += [_MEDIA[number] for number in parts if number in _MEDIA]


def _put(event: Event, tag: str, value: Any, what: str) -> None:
    if value is None:
        event.left_out.append(what)
    else:
        event.values[tag] = value


def _plugin(metadata: Part | None) -> tuple[str, memoryview]:
    parts = dict(fields(_bytes(metadata)))
    found = dict(fields(_bytes(parts.get(1))))
    return _text(found.get(1, memoryview(b""))), _bytes(found.get(2))


def _hparams(event: Event, content: memoryview) -> None:
    for number, value in fields(content):
        if number == 3:  # a session begins
            for each, part in fields(_bytes(value)):
                if each == 1:
                    entry = dict(fields(_bytes(part)))
                    event.config[_text(entry.get(1, memoryview(b"")))] = _value(entry.get(2))
                elif each == 5:
                    event.began = _double(part)
        elif number == 4:  # and ends
            for each, part in fields(_bytes(value)):
                if each == 1 and isinstance(part, int):
                    event.status = _ENDS.get(part)
                elif each == 2:
                    event.ended = _double(part)


def _value(data: Part | None) -> Any:
    """A `google.protobuf.Value`: a number, text or truth."""
    for number, value in fields(_bytes(data)):
        if number == 2:
            return _double(value)
        if number == 3:
            return _text(value)
        if number == 4:
            return bool(value)
    return None


def _tensor(data: Part) -> Any:
    """The array of a TensorProto, or its text; None of what is neither, or large."""
    dtype, shape, content, numbers, texts = 0, [], memoryview(b""), [], []
    for number, value in fields(_bytes(data)):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 2:
            shape = [_dimension(part) for each, part in fields(_bytes(value)) if each == 2]
        elif number == 4:
            content = _bytes(value)
        elif number in _LISTS:
            if len(_bytes(value)) > 8 * _MOST:
                return None
            code = _LISTS[number]
            raw = value.to_bytes(np.dtype(code).itemsize, "little") if isinstance(value, int) else bytes(value)
            numbers += np.frombuffer(raw, code).tolist()
        elif number in _INTEGERS:
            numbers += _integers(value)
        elif number == 8:
            texts.append(_text(value))
        if len(numbers) > _MOST or len(content) > 8 * _MOST:
            return None
    if dtype == _STRING:
        return texts[0] if len(texts) == 1 else None
    if dtype not in _DTYPES:
        return None
    array = np.frombuffer(content, _DTYPES[dtype]) if len(content) else np.array(numbers, _DTYPES[dtype])
    size = math.prod(shape)
    if array.size == 1 and size > 1 and size <= _MOST:  # one for all
        array = np.repeat(array, size)
    return array.reshape(shape) if array.size == size else None


def _dimension(data: Part) -> int:
    for number, value in fields(_bytes(data)):
        if number == 1 and isinstance(value, int):
            return value
    return 0


def _integers(value: Part) -> list[int]:
    if isinstance(value, int):
        return [signed(value)]
    found, at = list[int](), 0
    while at < len(value) and len(found) <= _MOST:
        one, at = varint(value, at)
        found.append(signed(one))
    return found


def _buckets(tensor: Any) -> Logged | None:
    """A histogram that is a tensor: rows of left, right, count."""
    if not isinstance(tensor, np.ndarray) or tensor.ndim != 2 or tensor.shape[1] != 3 or not len(tensor):
        return None
    return histogram(tensor[:, 2], [*tensor[:, 0], tensor[-1, 1]])


def _histogram(data: Part) -> Logged | None:
    """A HistogramProto: 1 min, 2 max, 6 the ends of the bins, 7 their counts."""
    low, high, ends, counts = 0.0, 0.0, list[float](), list[float]()
    for number, value in fields(_bytes(data)):
        if number == 1:
            low = _double(value)
        elif number == 2:
            high = _double(value)
        elif number in (6, 7):
            if len(_bytes(value)) + 8 * max(len(ends), len(counts)) > 8 * _MOST:
                return None
            raw = value.to_bytes(8, "little") if isinstance(value, int) else bytes(value)
            (ends if number == 6 else counts).extend(np.frombuffer(raw, "<f8").tolist())
    there = [place for place, count in enumerate(counts) if count]
    if len(ends) != len(counts) or not there or not math.isfinite(low) or not math.isfinite(high):
        return None
    first, last = there[0], there[-1] + 1
    begins = max(low, ends[first - 1]) if first else low
    return histogram(counts[first:last], [begins, *ends[first : last - 1], min(high, ends[last - 1])])


def _double(value: Part) -> float:
    return float(struct.unpack("<d", value.to_bytes(8, "little"))[0]) if isinstance(value, int) else math.nan


def _float(value: Part) -> float:
    return float(struct.unpack("<f", value.to_bytes(4, "little"))[0]) if isinstance(value, int) else math.nan


def _bytes(value: Part | None) -> memoryview:
    return memoryview(b"") if value is None or isinstance(value, int) else value


def _text(value: Part) -> str:
    return str(_bytes(value), "utf-8", "replace")
