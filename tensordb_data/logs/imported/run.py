"""Import the runs of a tracker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tensordb_data.errors import NotFoundError, QueryError, UnsupportedError
from tensordb_data.logs.imported.mlflow import mlflow_runs
from tensordb_data.logs.imported.report import ImportedRuns
from tensordb_data.logs.imported.source import SourceRun, digest
from tensordb_data.logs.imported.tensorboard import tensorboard_runs
from tensordb_data.logs.imported.trackio import trackio_runs
from tensordb_data.logs.imported.wandb import wandb_runs
from tensordb_data.logs.imported.write import RunImporter
from tensordb_data.query.tags import clean_tags
from tensordb_data.warehouse.metrics import is_text

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_READERS: dict[str, Callable[[Path, ImportedRuns], Iterator[SourceRun]]] = {
    "mlflow": mlflow_runs,
    "wandb": wandb_runs,
    "tensorboard": tensorboard_runs,
    "trackio": trackio_runs,
}
KINDS = tuple(_READERS)


def import_runs(
    warehouse: Warehouse, kind: str, source: str | os.PathLike[str], *, prefix: str = "", tags: Sequence[str] = ()
) -> ImportedRuns:
    """See `Logs.import_runs`."""
    if kind not in _READERS:
        raise QueryError(f"runs are imported from {', '.join(KINDS)}; found {kind!r:.200}")
    if not isinstance(prefix, str) or not is_text(prefix) or "\0" in prefix:
        raise QueryError(f"prefix= is a text; found {prefix!r:.200}")
    own = clean_tags(tags) if tags else []
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock cannot import runs; use a real server")
    place = Path(source)
    try:
        place = place.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise NotFoundError(f"{source}: there is nothing to import: {why}") from None
    report = ImportedRuns(kind)
    importer = RunImporter(warehouse, kind, report, prefix, own)
    seen: set[str] = set()
    for run in _READERS[kind](place, report):
        if run.id in seen:  # a copy of its folder, which would replace the other at each import
            run.id = digest(run.id, run.where)
        seen.add(run.id)
        importer.bring(run)
    return report
