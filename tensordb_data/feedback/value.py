"""Feedback: names a number that a run has found out about each sample, as a value that a stream can draw by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from tensordb_data.errors import QueryError
from tensordb_data.warehouse.metrics import is_text

How = Literal["mean", "last", "count", "variance"]

_LONGEST = 200


@dataclass(frozen=True)
class Feedback:
    """What a run has told of each sample by `db.data.feedback`: `Feedback("cnn-1", "loss")`.

    Give it to `Selection.stream(weights=...)`. `Selection.feedback_of` reads it as a table.

    Raises:
        QueryError: A name is malformed, or a value is none of those that are known.
    """

    run: str
    """The name of the run."""
    name: str
    """The name of the number, such as `"loss"`."""
    how: How = "mean"
    """Which value of a sample: the `"mean"` of its numbers, the `"last"` one, their `"count"`, or their `"variance"`
    (the mean of the squared differences from the mean)."""
    missing: float | None = None
    """The value of a sample without feedback. None: the mean of the values of all samples of the pass that have
    feedback; 1 if none of them has any."""

    instead: ClassVar[str] = (
        "feedback is stored beside the samples, where the server neither filters nor sorts by it: read it with"
        ' `table = sel.feedback_of("cnn-1", "loss")`, and select by id, db.data.find({"_id": {"$in":'
        " table.highest(1000)}})"
    )
    """What an error says where it cannot stand."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", run_name(self.run))
        object.__setattr__(self, "name", number_name(self.name))
        if self.how not in get_args(How):
            raise QueryError(f"`how` must be one of {', '.join(get_args(How))}. Found: {self.how!r:.80}")
        if self.missing is not None:
            number: Any = self.missing
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise QueryError(f"`missing` must be a finite number, or None for the mean. Found: {number!r:.80}")
            object.__setattr__(self, "missing", float(number))

    def to_doc(self) -> dict[str, Any]:
        """The JSON form."""
        return {"run": self.run, "name": self.name, "how": self.how, "missing": self.missing}


def run_name(run: object) -> str:
    """The name of a run, checked."""
    if not isinstance(run, str) or not run or not is_text(run):
        raise QueryError(f'a run is named by a non-empty string, such as "cnn-1"; found {run!r:.80}')
    return run


def number_name(name: object) -> str:
    """The name of a number, checked."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST or not is_text(name):
        raise QueryError(
            f'a number is named by a string of 1 to {_LONGEST} characters, such as "loss"; found {name!r:.80}'
        )
    return name
