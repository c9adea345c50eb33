"""Accelerate: a tracker that writes the rows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import MissingExtraError
from tensordb_data.torch.loggers.run_rows import RunRows

try:
    from accelerate.tracking import GeneralTracker, on_main_process
except ImportError as error:
    raise MissingExtraError("tensordb_data.torch.accelerate needs Accelerate: pip install accelerate") from error

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB
    from tensordb_data.logs.writer import RunLog


class RunTracker(GeneralTracker):  # type: ignore[misc]
    """A tracker of Accelerate that writes to `db.logs`: `Accelerator(log_with=RunTracker(db, "cnn-1"))`.

    `accelerator.log` adds a row of kind "train", or of the kind that
    `log_kwargs={"tensordb": {"kind": "valid"}}` names. The configuration that `init_trackers` gets is noted with the
    run, see `db.runs`. The main process writes. A value of any name or kind never ends a training; what cannot be
    stored is left out, and said once.

    Args:
        db: The warehouse.
        run: Name of the run. If it has rows already, new rows are added. The project that `init_trackers` names does
            not count.
        tags: Tags of each row.

    Raises:
        SchemaError: The name or a tag is malformed.
    """

    name = "tensordb"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, db: TensorDB, run: str, *, tags: Sequence[str] = ()) -> None:
        super().__init__()
        self._rows = RunRows(db, run, tags)

    @property
    def tracker(self) -> RunLog:
        """The log of the run."""
        return self._rows.log

    @on_main_process  # type: ignore[untyped-decorator]
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Notes the configuration of the run."""
        self._rows.write_config(values)

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: Mapping[str, Any], step: int | None = None, kind: str = "train", **kwargs: Any) -> None:
        """Adds a row. Without a step, it has that of the row before."""
        self._rows.write(step, kind, values)

    @on_main_process  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """Writes all rows, and closes the log until there is another one."""
        self._rows.close()
