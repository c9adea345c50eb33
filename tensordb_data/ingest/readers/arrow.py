"""Files of Arrow: Feather, IPC files and streams, and datasets that Hugging Face has saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.readers.arrow_places import Places
from tensordb_data.ingest.readers.arrow_table import ArrowTable
from tensordb_data.ingest.readers.arrow_types import pyarrow
from tensordb_data.ingest.readers.tables import Tables
from tensordb_data.ingest.source import FileInfo

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

SUFFIXES = (".arrow", ".feather", ".ipc", ".arrows")
_FILE, _FEATHER = b"ARROW1", b"FEA1"


def open_arrow(given: Given) -> Tables:
    """Feather files, and IPC files and streams of Arrow."""
    pyarrow()
    return Tables(given, given.choose(SUFFIXES), lambda file: arrow_table(given, file), can_refer=True)


def open_saved(given: Given) -> Tables:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` of Hugging Face has made."""
    pyarrow()
    files = {file.name: file for file in given.files.files}
    splits = [""]
    if "dataset_dict.json" in files:
        splits = [str(name) for name in _json(given, files["dataset_dict.json"]).get("splits", [])]
    parts: dict[str, str | None] = {}
    for split in splits:
        folder = f"{split}/" if split else ""
        state = files.get(f"{folder}state.json")
        if state is None:
            raise SchemaError(f"{given.files.root}/{folder}: expected a state.json of Hugging Face, found none")
        for entry in _json(given, state).get("_data_files", []):
            name = f"{folder}{entry.get('filename')}"
            if name not in files:
                given.report.fail(name, "is named in state.json, and is not there")
            else:
                parts[name] = split or None
    for name in files:
        if name not in parts and not name.endswith((".json", ".arrow")):
            given.report.ignore(name)
    if not parts:
        raise SchemaError(f"{given.files.root}: expected files of Arrow that state.json names, found none")
    return Tables(
        given, [files[name] for name in parts], lambda file: arrow_table(given, file), splits=parts, can_refer=True
    )


def arrow_table(given: Given, file: FileInfo) -> ArrowTable:
    """One file of Arrow."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.feather
    import pyarrow.ipc

    where = given.files.path(file)

    def opened(source: Any) -> Any:
        head = source.read(6)
        source.seek(0)
        if head[:4] == _FEATHER:
            return pyarrow.feather.read_table(source)
        return pa.ipc.open_file(source) if head == _FILE else pa.ipc.open_stream(source)

    reading: list[Places] = []

    def locate(column: Any) -> Sequence[Any]:
        places = reading[-1].locate(column)
        if reading[-1].lost:
            given.report.note(f"{file.name}: it is compressed, so its values were copied")
        return places

    def batches(columns: Sequence[str] | None) -> Iterator[Any]:
        ranges = given.ranges(file)
        try:
            with given.open(file) as plain:
                reading[:] = [] if ranges is None else [Places(plain, ranges)]
                source: Any = reading[-1] if reading else plain
                found = opened(source)
                if isinstance(found, pa.Table):
                    parts = iter(found.to_batches())
                elif hasattr(found, "num_record_batches"):
                    parts = (found.get_batch(i) for i in range(found.num_record_batches))
                else:
                    parts = iter(found)
                for batch in parts:
                    if batch.num_rows:
                        yield batch if columns is None else batch.select(list(columns))
        except (pa.ArrowException, OSError) as error:
            raise SchemaError(f"{where}: damaged Arrow file: {error}") from None

    try:
        with given.open(file) as source:
            schema = opened(source).schema
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{where}: expected a file of Arrow: {error}") from None
    stays = given.in_place is not None
    return ArrowTable(where, schema, batches, size=file.size, locate=locate if stays else None)


def _json(given: Given, file: FileInfo) -> dict[str, Any]:
    try:
        found = json.loads(given.files.read(file))
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{given.files.path(file)}: expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise SchemaError(f"{given.files.path(file)}: expected an object, found {type(found).__name__}")
    return found
