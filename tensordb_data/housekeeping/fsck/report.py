"""What fsck says in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from tensordb_data.common.html import Report

LISTED = 10_000


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    kind: str
    """`missing object`, `damaged object`, `damaged blob`, `damaged document`, `dangling reference`, `foreign key`,
    `unopened root`, `leftover` or `unknown object`; of files that samples point into, `missing file` or `changed
    file`."""
    where: str
    """What it is about: a sample and its field, a parameter set, a key of the store."""
    what: str
    """What was expected, and what was found."""


@dataclass
class Checked(Report):
    """What fsck has checked, and what it has found."""

    segments: int = 0
    samples: int = 0
    tensors: int = 0
    sets: int = 0
    """Checkpoints and architectures."""
    bytes: int = 0
    """Bytes whose checksums were verified."""
    findings: list[Finding] = field(default_factory=list)
    """The first ten thousand findings."""
    more: int = 0
    """How many findings there are beyond those."""
    warnings: list[str] = field(default_factory=list)
    """What is intact, and not as this library would have written it."""

    def find(self, kind: str, where: str, what: str) -> None:
        """Add a finding."""
        if len(self.findings) < LISTED:
            self.findings.append(Finding(kind, where, what))
        else:
            self.more += 1
