"""What a rebuild reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tensordb_data.common.html import Report

UNKNOWN = (
    "samples whose blobs were all in documents (live writers, before a compaction), or that have none",
    "deletions of which there is no tombstone: by other tools, or by versions that wrote none",
    "flushes and saves that were never committed: those whose blobs had all been written are there",
    "new names of datasets: samples are in the dataset for which their segment was written",
    "changes of labels, tags, fields and metrics since they were written",
    "sequence numbers: samples are in the order of their _id, sets in that of their times",
    "logs, architectures and jobs",
)
"""What the blob store does not tell."""

Progress = Callable[[str, int, int], None]
"""Called with what is read, how many of it are done, and of how many."""


@dataclass
class Rebuilt(Report):
    """What a rebuild did."""

    segments: int = 0
    samples: int = 0
    datasets: dict[str, int] = field(default_factory=dict)
    """Samples by dataset."""
    sets: int = 0
    runs: dict[str, int] = field(default_factory=dict)
    """Checkpoints by run."""
    frozen: int = 0
    """Frozen sets."""
    deleted: int = 0
    """Samples, checkpoints and frozen sets whose bytes still exist, and which stay deleted: tombstones name them."""
    skipped: list[str] = field(default_factory=list)
    """Objects and checkpoints that could not be used, and why."""
    projects: list[str] = field(default_factory=list)
    """Other projects that have blobs in this store. Rebuild each of them by a call of its own."""
    unknown: tuple[str, ...] = UNKNOWN
