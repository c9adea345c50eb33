"""The report of an import of runs: what came in, what was left out, and what failed."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any, NamedTuple

from tensordb_data.common.html import Report
from tensordb_data.errors import IngestError

_KEPT = 1_000
_RAISED = 5


class Failure(NamedTuple):
    """Something that did not come in."""

    where: str
    """The run or the file."""
    why: str


@dataclasses.dataclass(repr=False)
class ImportedRuns(Report):
    """What an import of runs did. Printed, it is one line."""

    kind: str
    """The tracker that the runs come from."""
    added: int = 0
    """Runs that are new."""
    updated: int = 0
    """Runs that had been imported before, and have changed at their source since: their rows were replaced."""
    unchanged: int = 0
    """Runs that had been imported before."""
    rows: int = 0
    """Rows that were written."""
    failures: int = 0
    """How many runs or files did not come in."""
    failed: list[Failure] = dataclasses.field(default_factory=list)
    """What did not come in: (where, why), the first 1,000."""
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """What a log does not hold, and how much of it there was: images, artifacts."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What one should know: metrics that have another name here, a file that ends early. The first 1,000."""
    names: list[str] = dataclasses.field(default_factory=list)
    """The names of the runs that were added or updated, the first 1,000."""

    def fail(self, where: str, why: str) -> None:
        """Note something that did not come in."""
        self.failures += 1
        if len(self.failed) < _KEPT:
            self.failed.append(Failure(where, f"{why:.1000}"))

    def note(self, text: str) -> None:
        """Note something that one should know, once."""
        if len(self.notes) < _KEPT and text not in self.notes:
            self.notes.append(text)

    def leave_out(self, what: dict[str, int]) -> None:
        """Count what a run had that a log does not hold."""
        for name, count in what.items():
            self.left_out[name] = self.left_out.get(name, 0) + count

    def done(self, name: str, rows: int) -> None:
        """Count a run that came in."""
        self.rows += rows
        if len(self.names) < _KEPT:
            self.names.append(name)

    def raise_if_failed(self) -> None:
        """Raise an error if something did not come in.

        Raises:
            IngestError: Its text names the first failures; its `report` is this one.
        """
        if self.failures:
            first = "; ".join(f"{where}: {why}" for where, why in self.failed[:_RAISED])
            more = f"; and {self.failures - _RAISED} more, see .report" if self.failures > _RAISED else ""
            raise IngestError(f"{self.failures} of the runs of {self.kind} did not come in: {first}{more}", self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "failed": [list(failure) for failure in self.failed]}

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        parts = [f"{self.added:,} runs added", f"{self.updated:,} updated", f"{self.unchanged:,} unchanged"]
        parts += [f"{self.rows:,} rows", f"{self.failures:,} failed"]
        if self.left_out:
            most = Counter(self.left_out).most_common()
            parts.append("left out: " + ", ".join(f"{count:,} {what}" for what, count in most))
        return " · ".join(parts)

    __repr__ = __str__
