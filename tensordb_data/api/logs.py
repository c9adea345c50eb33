"""The logs of runs: rows, series, plots, tables and files of other tools."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.api.collection import Collection
from tensordb_data.api.record import LinkedRecord
from tensordb_data.api.selection import Selection
from tensordb_data.errors import NotFoundError, QueryError, StorageError
from tensordb_data.logs.arrays import Histogram, described, is_logged, read_array, read_histogram
from tensordb_data.logs.writer import RESERVED, RunLog
from tensordb_data.query.query import Filter, Query, Sort
from tensordb_data.query.tags import clean_tags
from tensordb_data.runs.documents import make_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tensordb_data.api.protocol import Facade
    from tensordb_data.logs.imported.report import ImportedRuns
    from tensordb_data.logs.plot import Picture
    from tensordb_data.logs.series import Series

__all__ = ["RESERVED", "LogRow", "LogSelection", "Logs", "RunLog"]

_POINTS = 500


class LogRow(LinkedRecord):
    """One row of a log."""

    __slots__ = ()

    collection = "logs"

    @property
    def run(self) -> str:
        """The run that wrote it."""
        return str(self._doc["run"])

    @property
    def step(self) -> int:
        """The step it was written at."""
        return int(self._doc["step"])

    @property
    def kind(self) -> str:
        """`"train"`, `"valid"` or what the run called it."""
        return str(self._doc["kind"])

    def array(self, name: str) -> NDArray[Any]:
        """The array that was logged under a name.

        Raises:
            QueryError: The value of this name is no array.
            NotFoundError: It is a large distribution, of which only the histogram was kept.
            CorruptBlobError: It is damaged.
        """
        return read_array(self._warehouse, self._logged(name), f"{name!r} of {self._place}")

    def histogram(self, name: str) -> Histogram:
        """The histogram of the numbers that were logged under a name.

        Raises:
            QueryError: The value of this name is none.
            NotFoundError: It is an array of several dimensions.
        """
        return read_histogram(self._logged(name), f"{name!r} of {self._place}")

    def _logged(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self[name]
        if not is_logged(found):
            raise QueryError(f"{name!r} of {self._place} is no array; found {found!r:.200}")
        return found

    @property
    def _place(self) -> str:
        return f"the row of run {self.run!r} at step {self.step}"

    def _shown(self) -> Iterator[tuple[str, Any]]:
        for name, value in super()._shown():
            yield name, described(value) if is_logged(value) else value

    def entity(self, name: str) -> Any:
        """The sample, parameter set or other entity that was logged under a name.

        Raises:
            QueryError: The value of this name is not an entity.
            NotFoundError: The entity is not in the warehouse any more.
        """
        found = self[name]
        if not isinstance(found, dict) or found.keys() != {"collection", "id"}:
            raise QueryError(f"{name!r} of {self!r} is no entity; found {found!r}")
        return self.db.select(Query(found["collection"], {"_id": found["id"]})).first()


class LogSelection(Selection[LogRow]):
    """Rows of logs: a Selection that can be converted to tables, series, and files of other tools."""

    def to_arrow(self) -> Any:  # type: ignore[override]  # rows have no blobs
        """The rows as a `pyarrow.Table`, with a column for every field that occurs.

        A column with integers and floats becomes a column of floats. A column with numbers and texts becomes a column
        of texts.
        """
        from tensordb_data.logs.tables import arrow

        return arrow(self._flat())

    def to_pandas(self) -> Any:  # type: ignore[override]  # rows have no blobs
        """The rows as a `pandas.DataFrame`, with a column for every field that occurs."""
        from tensordb_data.logs.tables import pandas

        return pandas(self._flat())

    def to_csv(self, path: str | Path) -> int:
        """Writes the rows as a CSV file, whole or not at all. Returns the number of rows.

        Raises:
            StorageError: The file cannot be written.
        """
        from tensordb_data.logs.tables import write_csv

        return write_csv(self._flat(), path)

    def to_tensorboard(self, folder: str | Path) -> int:
        """Writes the rows as event files of TensorBoard, `<folder>/<run>/<kind>/`. Returns the number of values.

        Numbers become scalars, texts texts, and histograms histograms. Other arrays are left out. A later export into
        the folder replaces what an earlier one has written of the same run and kind.

        Raises:
            MissingExtraError: tensorboard is not installed.
            StorageError: The folder cannot be written.
        """
        from tensordb_data.logs.tensorboard import write_events

        return write_events(self._flat(arrays=True), folder)

    def series(self, name: str, *, points: int = _POINTS) -> list[Series]:
        """A metric over the steps, as one series for each run and kind. The server thins the rows out.

        Args:
            name: The metric. Rows in which it is not a number are left out. NaN and infinite values are counted.
            points: The most points of a series.

        Raises:
            QueryError: An argument is malformed.
        """
        from tensordb_data.logs.series import read_series

        return read_series(self.bound, name, points)

    def _flat(self, *, arrays: bool = False) -> Iterator[dict[str, Any]]:
        from tensordb_data.logs.tables import flat

        return flat((row._doc for row in self), arrays=arrays)


class Logs(Collection[LogRow]):
    """`db.logs`: rows of numbers, by run, kind and step."""

    def __init__(self, db: Facade) -> None:
        super().__init__(db, "logs", LogRow)

    def find(
        self,
        filter: Filter | None = None,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        fields: Iterable[str] | None = None,
    ) -> LogSelection:
        """Select rows; see `Collection.find`. Without a sort they come in the order in which they were written."""
        return LogSelection(self.db, Query(self.name, filter, sort=sort, limit=limit, fields=fields))

    def entities(self, docs: Sequence[Mapping[str, Any]]) -> list[LogRow]:
        return [LogRow(self.db, doc) for doc in docs]

    def run(
        self,
        name: str,
        *,
        tags: Sequence[str] = (),
        system: float | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> RunLog:
        """Open the log of a run, for writing.

        Args:
            name: The name of the run. If the run has rows already, new rows are added.
            tags: Tags of each row.
            system: Add a row of kind `"system"` every so many seconds, with the load and memory of the process, the
                machine and its GPUs. This needs psutil.

            config: The configuration of the run, `{"lr": 0.01}`, which is noted with the run, see `db.runs`.

        Raises:
            SchemaError: An argument is malformed.
            MissingExtraError: psutil is not installed.
        """
        log = RunLog(self._warehouse, name, tags, system)
        if config is not None:
            make_run(self._warehouse, name, config, clean_tags(tags) if tags else ())
        return log

    def import_runs(
        self, kind: str, source: str | os.PathLike[str], *, prefix: str = "", tags: Sequence[str] = ()
    ) -> ImportedRuns:
        """Bring the runs of another tracker into `db.runs` and `db.logs`. This needs neither its library nor a server.

        A run comes in whole or not at all. A run that was imported before is known by its id there: it is left as it
        is, and if it has grown since, its rows are replaced. Where a run of its name is here already, its id is added
        to the name.

        Args:
            kind: `"mlflow"`, `"wandb"`, `"tensorboard"` or `"trackio"`.
            source: Where the runs are: a folder `mlruns/` or the file `mlflow.db` of MLflow, a folder `wandb/` of W&B,
                a folder of event files of TensorBoard, a database of Trackio or a folder of them. Links in it are
                not followed.
            prefix: Comes before the name of each run.
            tags: Tags of each run, besides its own.

        Returns:
            What came in, what was left out, such as images and artifacts, and what failed. Damaged runs do not stop the
            others: `raise_if_failed()` makes an error of them.

        Raises:
            NotFoundError: There is no such file or folder.
            QueryError: An argument is malformed, or the source has no runs of this kind.
        """
        from tensordb_data.logs.imported.run import import_runs

        return import_runs(self._warehouse, kind, source, prefix=prefix, tags=tags)

    def plot(
        self, name: str, filter: Filter | None = None, *, path: str | Path | None = None, points: int = _POINTS
    ) -> Picture:
        """Draw a metric over the steps, with a line for each matching run and kind.

        Args:
            name: The metric.
            filter: Which rows to draw: `{"tags": "cnn", "kind": "valid"}`.
            path: A file to which the PNG is also written.
            points: The most points of a line. The server combines the rows between two points.

        Returns:
            The PNG. A notebook shows it.

        Raises:
            NotFoundError: No matching row has a number of this name.
            MissingExtraError: matplotlib is not installed.
            StorageError: `path` cannot be written.
        """
        from tensordb_data.logs.plot import draw

        rows = self.find(filter)
        series = rows.series(name, points=points)
        if not series:
            some = sorted({key for row in rows.head(100) for key in row} - RESERVED)
            names = f"there are {', '.join(map(repr, some))}" if some else "no row matches"
            raise NotFoundError(
                f"no number {name!r} in {rows.query.brief} of project {self._warehouse.project!r}: {names}"
            )
        picture = draw(series, name)
        if path is not None:
            try:
                Path(path).write_bytes(picture)
            except OSError as error:
                raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        return picture
