"""TensorBoard: rows as its event files, through its own library."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tensordb_data.errors import MissingExtraError, StorageError
from tensordb_data.logs.writer import RESERVED


def write_events(rows: Iterable[Mapping[str, Any]], folder: str | Path) -> int:
    """Writes event files, `<folder>/<run>/<kind>/events…`; returns the number of values.

    Numbers become scalars, texts texts, and items of a list of numbers scalars `name/0`, `name/1`, …

    Raises:
        MissingExtraError: tensorboard is not installed.
        StorageError: The folder cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
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
        return Summary.Value(tag=name, simple_value=float(found))

    count = 0
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
                    writers[key] = RecordWriter(files.enter_context(_opened(Path(folder, *map(_name, key)))))
                    begin = Event(wall_time=time.time(), file_version="brain.Event:2")
                    writers[key].write(begin.SerializeToString())
                wall = row["time"].replace(tzinfo=dt.timezone.utc).timestamp()
                event = Event(wall_time=wall, step=row["step"], summary=Summary(value=values))
                writers[key].write(event.SerializeToString())
                count += len(values)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror or error}") from error
    return count


def _opened(path: Path) -> BinaryIO:
    path.mkdir(parents=True, exist_ok=True)
    return open(path / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}", "xb")


def _values(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, found in row.items():
        if name in RESERVED:
            continue
        if isinstance(found, list):
            yield from ((f"{name}/{i}", item) for i, item in enumerate(found) if isinstance(item, (int, float)))
        elif isinstance(found, (int, float, str)):
            yield name, found


def _name(text: str) -> str:
    """A name of one folder, for a run or kind that is called anything."""
    safe = "".join(c if c.isalnum() or c in "-_.=+ " else "_" for c in text)
    return safe if safe.strip(".") else f"_{safe}"
