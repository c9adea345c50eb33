"""TensorBoard: rows as its event files, through its own library."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensordb_data.errors import MissingExtraError, StorageError
from tensordb_data.logs.arrays import Histogram, is_logged, read_histogram
from tensordb_data.logs.writer import RESERVED

FILE = "events.out.tfevents.tensordb"
_LONGEST = 200  # bytes of the name of a folder; a file system takes 255


def write_events(rows: Iterable[Mapping[str, Any]], folder: str | Path) -> int:
    """Writes event files, `<folder>/<run>/<kind>/events…`, in place of earlier ones; returns the number of values.

    Numbers become scalars, texts texts, histograms histograms, and items of a list of numbers scalars `name/0`,
    `name/1`, …

    Raises:
        MissingExtraError: tensorboard is not installed.
        StorageError: The folder cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise MissingExtraError("this export needs tensorboard: pip install 'tensordb-data[logs]'") from None
    text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])

    def value(name: str, found: Any) -> Any:
        if isinstance(found, str):
            tensor = TensorProto(dtype="DT_STRING", string_val=[found.encode()], tensor_shape=shape)
            return Summary.Value(tag=f"{name}/text_summary", metadata=text, tensor=tensor)
        if isinstance(found, Histogram):
            middle = [(low + high) / 2 for low, high in zip(found.edges, found.edges[1:], strict=False)]
            histogram = HistogramProto(
                min=found.min, max=found.max, num=found.n, sum=(found.mean or 0.0) * found.n,
                sum_squares=sum(n * value**2 for n, value in zip(found.counts, middle, strict=True)),
                bucket_limit=found.edges[1:], bucket=found.counts,
            )  # fmt: skip
            return Summary.Value(tag=name, histo=histogram)
        return Summary.Value(tag=name, simple_value=float(found))

    count = 0
    partial: list[Path] = []
    try:
        with contextlib.ExitStack() as files:
            writers: dict[tuple[str, str], Any] = {}
            for row in rows:
                values = [value(*pair) for pair in _values(row)]
                if not values:
                    continue
                key = (row["run"], row["kind"])
                if key not in writers:
                    # Not its EventFileWriter, which loads all of TensorFlow where that is installed.
                    partial.append(_partial(Path(folder, *map(_name, key))))
                    writers[key] = RecordWriter(files.enter_context(partial[-1].open("xb")))
                    begin = Event(wall_time=_time(row), file_version="brain.Event:2")
                    writers[key].write(begin.SerializeToString())
                event = Event(wall_time=_time(row), step=row["step"], summary=Summary(value=values))
                writers[key].write(event.SerializeToString())
                count += len(values)
        for path in partial:
            path.replace(path.parent / FILE)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return count


def _partial(folder: Path) -> Path:
    """A file that becomes the event file of a folder. TensorBoard does not read it: its name is another one."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{uuid.uuid4().hex}.partial"


def _time(row: Mapping[str, Any]) -> float:
    return float(row["time"].replace(tzinfo=dt.timezone.utc).timestamp())


def _values(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, found in row.items():
        if name in RESERVED:
            continue
        if isinstance(found, list):
            yield from ((f"{name}/{i}", item) for i, item in enumerate(found) if isinstance(item, (int, float)))
        elif isinstance(found, (int, float, str)):
            yield name, found
        elif is_logged(found) and found.get("histogram") is not None:
            histogram = read_histogram(found, f"{name!r} of step {row.get('step')}")
            if histogram.n:
                yield name, histogram


def _name(text: str) -> str:
    """A name of one folder, for a run or kind that is called anything: each name has one of its own."""
    safe = "".join(c if c.isalnum() or c in "-_.=+ " else "".join(f"%{b:02X}" for b in c.encode()) for c in text)
    if not safe.strip("."):
        safe = safe.replace(".", "%2E")
    if len(safe.encode()) > _LONGEST:
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return f"{safe.encode()[:_LONGEST].decode(errors='ignore')}%{digest}"
    return safe
