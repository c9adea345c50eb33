"""Hugging Face: a callback of `Trainer` that writes the rows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import MissingExtraError
from tensordb_data.torch.loggers.run_rows import RunRows

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError(
        "tensordb_data.torch.transformers needs Transformers: pip install transformers accelerate"
    ) from error

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB

EVALUATED = "eval_"
"""What the names of metrics of an evaluation begin with."""


class RunLogger(TrainerCallback):  # type: ignore[misc]
    """Writes what a `Trainer` reports to `db.logs`: `Trainer(callbacks=[RunLogger(db, "bert-1")])`.

    It does what `report_to` does for other tools. What is reported of the training becomes rows of kind "train", and of
    evaluations rows of kind "valid", under the names that the trainer gives (`eval_loss`). The training arguments
    are noted with the run, see `db.runs`. Process 0 writes. A metric of any name or value never ends a training; what
    cannot be stored is left out, and said once. A `StepCheckpoint` of the same run logs these metrics already.

    Args:
        db: The warehouse.
        run: Name of the run. If it has rows already, new rows are added.
        tags: Tags of each row.

    Raises:
        SchemaError: The name or a tag is malformed.
    """

    def __init__(self, db: TensorDB, run: str, *, tags: Sequence[str] = ()) -> None:
        self._rows = RunRows(db, run, tags)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the training arguments, in which the trainer hides tokens."""
        if state.is_world_process_zero:
            self._rows.write_config(args.to_dict())

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log what the trainer reports."""
        if state.is_world_process_zero and logs:
            kind = "valid" if any(str(name).startswith(EVALUATED) for name in logs) else "train"
            self._rows.write(state.global_step, kind, logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write all rows. A later evaluation opens the log again."""
        self._rows.close()
