"""Decide which saved sets of a run stay. This depends on their documents alone, so a policy may change at any time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import ObjectId

from tensordb_data.errors import CheckpointError
from tensordb_data.warehouse.metrics import less_is_better


@dataclass(frozen=True)
class Keep:
    """Which checkpoints of a run stay. A checkpoint stays if at least one of the rules keeps it.

    The newest checkpoint, from which the run continues, always stays. A checkpoint does not wait for a metric that an
    evaluator adds later, so make `last` large enough for the time that an evaluator needs.
    """

    last: int = 1
    """Keep this many of the newest checkpoints."""
    best: tuple[str, int] | tuple[str, int, str] | None = None
    """Keep the best by a metric: name and number, `("val_acc", 2)`. More is better; if less is better, write
    `("val_loss", 2, "min")`. Checkpoints without the metric, or with NaN, are not among the best. Of two with the same
    value, the newer is better."""
    every: int | None = None
    """Keep the first checkpoint at or after each multiple of this many steps."""
    tagged: str | Sequence[str] = ()
    """Keep checkpoints with one of these tags."""
    attempts: bool = True
    """Keep the newest checkpoint of each earlier attempt, where the run began anew since. False to let the other rules
    decide, so that a run that begins anew replaces what was saved before."""

    def __post_init__(self) -> None:
        if not _is_count(self.last, 0):
            raise CheckpointError(f"Keep(last=) is a number of sets, 0 or more. Found: {self.last!r}")
        if self.every is not None and not _is_count(self.every, 1):
            raise CheckpointError(f"Keep(every=) is a number of steps, at least 1. Found: {self.every!r}")
        if not isinstance(self.attempts, bool):
            raise CheckpointError(f"Keep(attempts=) is True or False. Found: {self.attempts!r}")
        tags = self.tags
        if not all(isinstance(tag, str) and tag for tag in tags):
            raise CheckpointError(f"Keep(tagged=) is a tag or a list of tags. Found: {self.tagged!r}")
        if self.best is not None:
            self._check_best(self.best)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags as a tuple."""
        return (self.tagged,) if isinstance(self.tagged, str) else tuple(self.tagged)

    @property
    def metric(self) -> str | None:
        """The metric that `best` goes by."""
        return None if self.best is None else self.best[0]

    def kept(self, sets: Sequence[Mapping[str, Any]]) -> dict[ObjectId, list[str]]:
        """Which checkpoints stay, and by which rules.

        Args:
            sets: The documents of the sets of one run; of each at least `_id`, `step`, `tags`, `_tdb.s`, `_tdb.parts`,
                `_tdb.line` and the metric.

        Returns:
            The rules by `_id` of each set that stays: some of `"newest"`, `"last"`, `"best"`, `"every"`, `"tagged"`,
            `"attempt"`.
        """
        order = sorted(sets, key=_age)
        chosen: dict[ObjectId, list[str]] = {}

        def choose(rule: str, documents: Sequence[Mapping[str, Any]]) -> None:
            for document in documents:
                chosen.setdefault(document["_id"], []).append(rule)

        states = [document for document in order if "training" in document["_tdb"]["parts"]]
        choose("newest", order[-1:] if order[-1:] == states[-1:] else states[-1:] + order[-1:])
        choose("last", order[-self.last :] if self.last else [])
        choose("best", self._best_of(order))
        choose("every", self._every_of(order))
        choose("tagged", [document for document in order if set(self.tags) & set(document.get("tags") or ())])
        if self.attempts:
            ends = {document["_tdb"].get("line"): document for document in states}
            choose("attempt", [document for document in ends.values() if document is not states[-1]])
        return chosen

    def _best_of(self, order: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        if self.best is None:
            return []
        metric, count = self.best[0], self.best[1]
        sign = -1 if self.best[2:] == ("min",) else 1
        known = [document for document in order if _is_number(document.get(metric))]
        return sorted(known, key=lambda document: (sign * document[metric], _age(document)))[-count:]

    def _every_of(self, order: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        if self.every is None:
            return []
        first: dict[int, Mapping[str, Any]] = {}
        for document in order:
            step = document.get("step")
            if not isinstance(step, int) or step < self.every:
                continue
            before = first.get(step // self.every)
            if before is None or step <= before["step"]:  # a step that was saved again: the newer one
                first[step // self.every] = document
        return list(first.values())

    def _check_best(self, best: object) -> None:
        valid = isinstance(best, tuple) and len(best) in (2, 3) and isinstance(best[0], str) and best[0]
        if not valid or not _is_count(best[1], 1) or best[2:] not in ((), ("min",), ("max",)):  # type: ignore[index]
            raise CheckpointError(
                'Keep(best=) is a metric and a number of sets, ("val_acc", 2), or with a direction, ("val_loss", 2, '
                f'"min"). Found: {best!r}'
            )
        if len(best) == 2 and less_is_better(best[0]):  # type: ignore[arg-type,index]
            raise CheckpointError(
                f"Keep(best={best!r}): more would be taken as better. Write {(*best, 'min')!r}, or "  # type: ignore[misc]
                f"{(*best, 'max')!r} if more is better."  # type: ignore[misc]
            )


def _age(document: Mapping[str, Any]) -> tuple[int, ObjectId]:
    return int(document["_tdb"]["s"]), document["_id"]


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
