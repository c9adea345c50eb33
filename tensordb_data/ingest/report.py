"""The report of an ingest: what was added, and what was not, and why. Nothing is left out in silence."""

from __future__ import annotations

import dataclasses
import html
import json
import time
from collections import Counter
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from tensordb_data.common.sizes import show_size
from tensordb_data.errors import IngestError
from tensordb_data.schema import Field

KEPT = 10_000
"""Failures and notes of which the text is kept. All are counted."""
_RAISED = 5
_SUFFIX = 16  # characters of what counts as a suffix


class Failure(NamedTuple):
    """Something that did not come in."""

    where: str
    """The file, and the row in it."""
    why: str


@dataclasses.dataclass(repr=False)
class Report:
    """What an ingest did. Printed, it is one line."""

    dataset: str = ""
    added: int = 0
    """New samples."""
    updated: int = 0
    """Samples that had other values before."""
    unchanged: int = 0
    """Rows whose samples were there, with the same values."""
    missing: int = 0
    """Samples of this source whose rows are not there any more. They are kept."""
    pruned: int = 0
    """Those of them that were deleted, with `prune=True`."""
    failed: list[Failure] = dataclasses.field(default_factory=list)
    """What could not be read: (where, why), the first 10,000."""
    failures: int = 0
    """How many there were."""
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    """Files that are no data of this source, by suffix."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What one should know: a column that was left out, a key that is missing."""
    nbytes: int = 0
    """Bytes of the source that were read."""
    referenced: int = 0
    """Bytes of blobs that stay where they are, with `in_place=True`."""
    copied: int = 0
    """Bytes of blobs that were copied into the warehouse."""
    seconds: float = 0.0
    dry_run: bool = False
    """Whether nothing was written."""
    in_place: bool = False
    """Whether files stay where they are."""
    schema: dict[str, Field] = dataclasses.field(default_factory=dict)
    """The fields of the samples."""

    def __post_init__(self) -> None:
        self._limit: int | None = None
        self._began = time.monotonic()

    @property
    def skipped(self) -> int:
        """The same as `unchanged`."""
        return self.unchanged

    def stop_after(self, failures: int | None) -> None:
        """Let `fail` raise when there are more than so many failures; None for never."""
        self._limit = failures

    def fail(self, where: str, why: str) -> None:
        """Note something that did not come in.

        Raises:
            IngestError: There are more failures than are allowed.
        """
        self.failures += 1
        if len(self.failed) < KEPT:
            self.failed.append(Failure(where, why))
        if self._limit is not None and self.failures > self._limit:
            more = f" ({self.failures} failures)" if self._limit else ""
            raise IngestError(f"{where}: {why}{more}", self)

    def ignore(self, name: str) -> None:
        """Note a file that is no data of this source."""
        suffix = PurePosixPath(name).suffix.lower()
        if not suffix or len(suffix) > _SUFFIX:
            suffix = "others"
        self.ignored[suffix] = self.ignored.get(suffix, 0) + 1

    def note(self, text: str) -> None:
        """Note something that one should know, once."""
        if text not in self.notes and len(self.notes) < KEPT:
            self.notes.append(text)

    def end(self) -> None:
        """Take the time."""
        self.seconds = time.monotonic() - self._began

    def raise_if_failed(self) -> None:
        """Raise an error if something did not come in.

        Raises:
            IngestError: Its text names the first failures; its `report` is this one.
        """
        if not self.failures:
            return
        first = "; ".join(f"{where}: {why}" for where, why in self.failed[:_RAISED])
        more = f"; and {self.failures - _RAISED} more, see .report" if self.failures > _RAISED else ""
        raise IngestError(f"{self.failures} of dataset {self.dataset!r} did not come in: {first}{more}", self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["failed"] = [list(failure) for failure in self.failed]
        values["skipped"] = self.unchanged
        values["schema"] = {name: field.to_doc() for name, field in self.schema.items()}
        return values

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        parts = [f"{self.added:,} added", f"{self.updated:,} updated", f"{self.unchanged:,} unchanged"]
        parts += [f"{count:,} {word}" for word, count in (("missing", self.missing), ("pruned", self.pruned)) if count]
        parts.append(f"{self.failures:,} failed")
        if self.ignored:
            most = Counter(self.ignored).most_common()
            parts.append("ignored: " + ", ".join(f"{count:,} {suffix}" for suffix, count in most))
        if self.in_place and not self.dry_run:
            parts += [f"{show_size(self.referenced)} referenced", f"{show_size(self.copied)} copied"]
        parts += [f"{show_size(self.nbytes)} read", f"{self.seconds:.0f} s"]
        return ("dry run: " if self.dry_run else "") + " · ".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(where)}</td><td>{html.escape(why)}</td></tr>"
                       for where, why in self.failed[:20])  # fmt: skip
        more = f"<p>and {self.failures - 20:,} more</p>" if self.failures > 20 else ""
        table = f"<table><tr><th>where</th><th>why</th></tr>{rows}</table>{more}" if rows else ""
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<p><b>{html.escape(self.dataset)}</b>: {html.escape(str(self))}</p>{table}{notes}"
