"""Evaluator: gives a score to each parameter set that has none."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.api.architectures import Built
from tensordb_data.api.frozen.parameter_set import ParameterSet
from tensordb_data.common.deprecation import Grouped, moved_options
from tensordb_data.common.options import suggesting
from tensordb_data.continuous.loop import Loop, log
from tensordb_data.errors import (
    ArchitectureError,
    CheckpointError,
    ClaimLostError,
    ConnectError,
    CorruptBlobError,
    MissingExtraError,
    NotAllowedError,
    QueryError,
    SchemaError,
    StateError,
    TensorDBError,
)
from tensordb_data.mongo.claims import Claim, check_lease, claim, claim_path
from tensordb_data.mongo.errors import is_transient
from tensordb_data.mongo.heartbeat import keep_renewing
from tensordb_data.params.load import describe
from tensordb_data.params.parameter_set import RESERVED
from tensordb_data.schema.schema import PROVENANCE
from tensordb_data.warehouse.metrics import check_names, scalar

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB
    from tensordb_data.api.selection import Selection
    from tensordb_data.samples.sample import Sample

Score = Callable[[Any, Iterable[Mapping[str, Any]]], Any]

ERROR = "_error"
"""What is added to the name of a metric for the reason why a set has none."""


class _NoScore(TensorDBError):
    """What came out is no score."""


# Not the fault of the set.
_OURS = (ArchitectureError, MissingExtraError, NotAllowedError)
# The same at any later attempt.
_FINAL = (CorruptBlobError, CheckpointError, StateError, _NoScore)
_LONGEST = 2000  # characters of a reason
_DELAY = 2.0  # seconds until a score that failed is tried again, doubled each time


class Evaluator(Loop):
    """Scores checkpoints that have no score yet, on a validation query, and writes the score into them.

    Any number of evaluators may run. An evaluator claims a checkpoint before it scores it, with a lease on the server's
    clock. So no two evaluators score the same checkpoint. If an evaluator dies, its checkpoint is free when the lease
    has run out. If it is alive after all, it cannot write its score any more. Newer checkpoints come first, unless
    `sets` has a sort.

    A checkpoint gets the reason as `<metric>_error` if it is damaged, or if its score is not a finite number. It also
    gets one if `score` has raised, or its evaluator died, `attempts` times. To score it again, unset this field:
    `sets.update({"$unset": {"val_acc_error": ""}})`.

    Args:
        db: The warehouse.
        sets: The checkpoints: `db.params.find({"run": "r"})`.
        score: Called with the state of a checkpoint, or with a model if `model` names an architecture, and with the
            batches of one pass over `data`. It returns a number, or a dict of metrics, one of which is `metric`.
        metric: The name of the score. A checkpoint that has this metric is not scored again.
        data: The validation samples. They are noted with the score, for `db.params.scored_on`.
        batch_size: Samples in a batch.
        model: What `score` is called with: `Built(architecture=...)` for a model with the parameters, `Built(part=...)`
            for another part of the checkpoint than `"model"`.
        name: Noted as the source of the score; by default host and process.
        lease: Seconds until others take over the checkpoint of this evaluator, if it dies.
        attempts: How often a checkpoint is tried.

    Raises from `once` and `run`:
        NotAllowedError, ArchitectureError, MissingExtraError: The architecture cannot be built here, for any
            checkpoint.

    Raises:
        QueryError: The selections are not of parameters and samples, or have a limit.
        SchemaError: `metric` cannot be the name of a metric.
    """

    @moved_options(Grouped("model", Built, {"architecture": "architecture", "allow": "allow", "part": "part"}))
    @suggesting()
    def __init__(
        self,
        db: TensorDB,
        sets: Selection[ParameterSet],
        score: Score,
        *,
        metric: str,
        data: Selection[Sample],
        batch_size: int = 256,
        model: Built | None = None,
        name: str | None = None,
        lease: float = 60.0,
        attempts: int = 3,
    ) -> None:
        super().__init__()
        if sets.query.collection != "params" or sets.query.limit is not None:
            raise QueryError(f"sets is a selection of parameters without a limit; found {sets.query.brief}")
        check_names([metric], RESERVED)
        if not callable(score):
            raise QueryError(f"score is a function of a model and batches; found {score!r:.200}")
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise QueryError(f"attempts is a number of times, at least 1; found {attempts!r}")
        model = Built() if model is None else model
        if not isinstance(model, Built):
            raise QueryError(f"model= is a Built(architecture=...); found {model!r:.200}")
        self._db, self._score, self._metric, self._model = db, score, metric, model
        self._attempts, self._lease = attempts, check_lease(lease)
        self._data, self._batch_size = data, batch_size
        data.stream(batch_size=batch_size)  # raises if it is none
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._path = claim_path(f"score {metric}")
        self._tries = f"{self._path}_tries"
        unscored = {metric: {"$exists": False}, metric + ERROR: {"$exists": False}}
        self._unscored = db.select(sets.query.replace(sort=None, fields=None)) & unscored
        self._sort = sets.query.sort or (("_id", -1),)

    def once(self) -> float | None:
        while not self._stopping:
            unscored = self._unscored.bound
            claimed = claim(
                unscored.collection, unscored.filter(), path=self._path, owner=self.name, lease=self._lease,
                sort=list(self._sort), stages=[{"$set": {self._tries: {"$add": [_or_zero(self._tries), 1]}}}],
            )  # fmt: skip
            if claimed is None:
                return self._next_free()
            (found,) = self._db.params.entities([claimed.document])
            try:
                self._evaluate(found, claimed)
            except ClaimLostError as error:
                log.warning("%s: %s", describe(found), error)
        return None

    def _watched(self) -> Selection[Any]:
        return self._unscored

    def _next_free(self) -> float | None:
        """Seconds until the claim of someone else runs out: nobody announces that."""
        left = list(
            self._unscored.bound.collection.aggregate([
                {"$match": self._unscored.bound.filter()},
                {"$group": {"_id": None, "until": {"$min": f"${self._path}.until"}}},
                {"$project": {"left": {"$subtract": ["$until", "$$NOW"]}}},
            ])
        )  # fmt: skip
        return None if not left or left[0]["left"] is None else max(0.05, left[0]["left"] / 1000)

    def _evaluate(self, found: ParameterSet, claimed: Claim) -> None:
        tries = _at(claimed.document, self._tries)
        if tries > self._attempts:
            self._fail(found, claimed, f"given up after {self._attempts} attempts that ended without a score")
            return
        try:
            with keep_renewing(claimed, self._lease):
                metrics = self._scored(found)
        except Exception as error:
            if is_transient(error) or isinstance(error, _OURS):
                with contextlib.suppress(ConnectError):
                    claimed.release([{"$set": {self._tries: tries - 1}}])
                raise
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, _FINAL) or tries >= self._attempts:
                self._fail(found, claimed, str(error) if isinstance(error, TensorDBError) else reason)
            else:
                claimed.renew(_DELAY * 2 ** (tries - 1))  # until then nobody tries
                log.warning("%s could not be scored, attempt %d: %s", describe(found), tries, reason)
            return
        claimed.release([{"$set": self._fields(metrics)}])
        log.info("%s: %s = %s", describe(found), self._metric, metrics[self._metric])

    def _scored(self, found: ParameterSet) -> dict[str, Any]:
        model = self._model.of(found)
        with contextlib.closing(self._data.stream(batch_size=self._batch_size, passes=1)) as batches:
            return self._checked(self._score(model, batches))

    def _checked(self, result: Any) -> dict[str, Any]:
        """The metrics, by name."""
        try:
            metrics = result if isinstance(result, Mapping) else {self._metric: result}
            check_names(metrics, RESERVED)
            metrics = {name: scalar(name, value) for name, value in metrics.items()}
        except SchemaError as error:
            raise _NoScore(str(error)) from None
        if self._metric not in metrics:
            raise _NoScore(f"the score function returned {', '.join(metrics) or 'nothing'}, and no {self._metric!r}")
        value = metrics[self._metric]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _NoScore(f"{self._metric} is {value!r:.80}; a number is needed")
        for name, number in metrics.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise _NoScore(f"{name} is {number}; a finite number is needed")
        return metrics

    def _fail(self, found: ParameterSet, claimed: Claim, reason: str) -> None:
        claimed.release([{"$set": self._fields({self._metric + ERROR: reason[:_LONGEST]})}, {"$unset": self._tries}])
        log.warning("%s gets no %s: %s", describe(found), self._metric, reason)

    def _fields(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """As `db.params.annotate` would write them, with the time of the server."""
        fields: dict[str, Any] = {name: {"$literal": value} for name, value in metrics.items()}
        by: dict[str, Any] = {"source": {"$literal": self.name}, "at": "$$NOW"}
        if self._metric in metrics:  # what has no score was scored on nothing
            by["data"] = {"$literal": self._data.query.to_json()}
        return {**fields, **{f"{PROVENANCE}.{name}": by for name in metrics}}


def _or_zero(path: str) -> dict[str, Any]:
    return {"$ifNull": [f"${path}", 0]}


def _at(document: Mapping[str, Any], path: str) -> int:
    value: Any = document
    for part in path.split("."):
        value = value[part]
    return int(value)
