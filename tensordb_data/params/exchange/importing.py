"""Import parameters from files of others as a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.params.exchange.reading import read_source
from tensordb_data.params.exchange.source import Imported
from tensordb_data.params.lineage import surroundings
from tensordb_data.params.save import save_parameters
from tensordb_data.tensors.tree import parts

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def import_set(
    warehouse: Warehouse,
    path: str | Path,
    key: str | None,
    fields: Callable[[int | None], Mapping[str, Any]],
    parent: ObjectId | None,
) -> Imported:
    """Read a file or folder, and save what it holds; see `Params.import_file`.

    Args:
        warehouse: The warehouse.
        path: The file or folder.
        key: See `read_source`.
        fields: The fields of the set, checked, for the step that the file names.
        parent: The set from which this one was made.
    """
    source = read_source(path, key)
    name = Path(path).name.encode(errors="replace").decode()
    lineage = {**surroundings(), "imported": {"from": name, "format": source.format, **source.about}}
    document = {**fields(source.step), "lineage": lineage}
    report = save_parameters(warehouse, source.snapshot, document, parent)
    return Imported(
        report.id, source.format, tuple(parts(source.snapshot.structure)), len(source.snapshot.leaves), report.nbytes,
        report.stored, dict(source.left_out),
    )  # fmt: skip
