"""PyTorch Lightning: a logger that writes the rows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import MissingExtraError, SchemaError
from tensordb_data.torch.loggers.run_rows import RunRows

try:
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.loggers.logger import rank_zero_experiment
    from lightning.pytorch.utilities import rank_zero_only
except ImportError:
    try:
        from pytorch_lightning.loggers import Logger
        from pytorch_lightning.loggers.logger import rank_zero_experiment
        from pytorch_lightning.utilities import rank_zero_only
    except ImportError as error:
        raise MissingExtraError("tensordb_data.torch.lightning needs Lightning: pip install lightning") from error

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB
    from tensordb_data.logs.writer import RunLog


class RunLogger(Logger):  # type: ignore[misc]
    """A logger of Lightning's `Trainer` that writes to `db.logs`: `Trainer(logger=RunLogger(db, "cnn-1"))`.

    What the trainer logs becomes rows of the run, under the names that the module gives. Hyperparameters are noted
    with the run, see `db.runs`. Rank 0 writes. A metric of any name or value never ends a training; what cannot be
    stored is left out, and said once. A `StepCheckpoint` of the same run logs metrics already.

    Args:
        db: The warehouse.
        run: Name of the run. If it has rows already, new rows are added.
        kind: The kind of the rows. Lightning does not say whether it has trained or validated.
        tags: Tags of each row.

    Raises:
        SchemaError: The name or a tag is malformed.
    """

    def __init__(self, db: TensorDB, run: str, *, kind: str = "train", tags: Sequence[str] = ()) -> None:
        super().__init__()
        if not isinstance(kind, str) or not kind:
            raise SchemaError(f"a kind is a non-empty string; found {kind!r:.200}")
        self._rows = RunRows(db, run, tags)
        self._kind = kind

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._rows.run

    @property
    def version(self) -> str:
        """Empty: rows of a run that is resumed are added to those before."""
        return ""

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]
    def experiment(self) -> RunLog:
        """The log of the run, for rows of your own: `self.logger.experiment.write(step, kind="mine", size=3)`."""
        return self._rows.log

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds a row."""
        self._rows.write(step, self._kind, metrics)

    @rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Notes the configuration of the run."""
        self._rows.write_config(params)

    def save(self) -> None:
        """Does nothing, since the trainer calls it after each row: rows are visible within a second anyway."""

    @rank_zero_only  # type: ignore[untyped-decorator]
    def finalize(self, status: str) -> None:
        """Writes all rows, and closes the log until there is another one."""
        self._rows.close()
