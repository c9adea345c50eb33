"""The run that a checkpointer saves: its lease, and the attempt that goes on after what was restored."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from tensordb_data.errors import CheckpointError, ReadOnlyError
from tensordb_data.runs.attempts import supersede
from tensordb_data.runs.lease import RunLease, final_state, may_not_write

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.warehouse.context import Warehouse


class RunSaver:
    """What a checkpointer has of its run. See `runs.lease` and `runs.attempts`.

    Args:
        warehouse: The warehouse.
        run: The run.
        code: What is known of the program.
        config: The configuration of the run, if it is given.
        tags: Tags of the run.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        run: str,
        code: Mapping[str, Any],
        config: Mapping[str, Any] | None,
        tags: Sequence[str],
    ) -> None:
        self._warehouse, self._run = warehouse, run
        self._code, self._config, self._tags = code, config, tags
        self.lease: RunLease | None = None
        """The lease, while this process has it."""
        self._before: Mapping[str, Any] | None = None  # an attempt that was ended here, and its last step

    @property
    def is_settled(self) -> bool:
        """Whether it is decided after what the attempt goes on."""
        return self.lease is not None and "after" in self.lease.attempt

    def hold(self) -> RunLease:
        """Take the lease, if this process does not have it.

        Raises:
            RunHeldError: Another saves the run.
            CheckpointError: This client may not write.
        """
        if self.lease is None or self.lease.gone:
            try:
                self.lease = RunLease.take(
                    self._warehouse, self._run, code=self._code, config=self._config, tags=self._tags
                )
            except (ReadOnlyError, OperationFailure) as error:
                if not may_not_write(error):
                    raise
                raise CheckpointError(
                    f"run {self._run!r} cannot be saved: this client may not write to the collection 'runs' ({error})"
                ) from error
        self.lease.check()
        return self.lease

    def hold_if_allowed(self) -> RunLease | None:
        """The same, before a restore, which a client that only reads may make, too.

        Raises:
            RunHeldError: Another saves the run.
        """
        try:
            return self.hold()
        except CheckpointError as error:
            if error.__cause__ is None or not may_not_write(error.__cause__):  # type: ignore[arg-type]
                raise
            return None

    def go_on_after(self, step: int, set: ObjectId | None) -> None:
        """The attempt goes on after a set that was restored.

        Raises:
            RunHeldError: Another has taken the run over.
        """
        lease = self.hold()
        if self.is_settled:
            lease.begin_again()
        found = set and self._warehouse.index["params"].find_one({"_id": set}, {"_tdb.a": 1, "_tdb.line": 1})
        known = (found or {}).get("_tdb", {})
        after = {"attempt": known.get("a"), "step": step, "set": set}
        self._settle(lease, after, known.get("line"))

    def begin(self, step: int) -> RunLease:
        """The loop ends a step: without a restore, the attempt begins anew.

        If steps had ended before, it goes on: after what was ended here, or after what another library has restored.

        Args:
            step: The last step that had ended before.

        Raises:
            RunHeldError: Another saves the run.
        """
        lease = self.hold()
        if not self.is_settled:
            earlier = lease.attempts[-2:-1]
            before = (self._before or (earlier[0] if earlier else None)) if step else None
            after = None if before is None else {"attempt": before["id"], "step": step, "set": None}
            self._settle(lease, after, lease.attempt["id"] if before is None else before.get("line"))
        lease.begun = True
        return lease

    def end(self) -> None:
        """Give the lease back. The attempt has failed if an error is on its way through the caller."""
        if self.lease is not None:
            self._before = self.lease.attempt
            self.lease.end(final_state(sys.exc_info()[1]))
            self.lease = None

    def _settle(self, lease: RunLease, after: Mapping[str, Any] | None, line: ObjectId | None) -> None:
        supersede(self._warehouse, self._run, lease.attempts, after)
        lease.note(after=after, **({} if line is None else {"line": line}))


def newest_set(warehouse: Warehouse, run: str, step: int | None = None) -> Mapping[str, Any] | None:
    """The document of the training set of a run that was committed last.

    The newest, not the highest step: a run that went back to an earlier step and went on from there continues there.
    """
    filter: dict[str, Any] = {"_tdb.p": warehouse.project, "run": run, "_tdb.parts": "training"}
    if step is not None:
        filter["step"] = step
    found: Mapping[str, Any] | None = warehouse.index["params"].find_one(filter, sort=[("_tdb.s", -1), ("_id", -1)])
    return found
