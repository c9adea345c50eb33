"""The report of an export."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class ExportReport:
    """What an export did."""

    path: str
    """The folder."""
    format: str
    count: int = 0
    """Samples in it."""
    splits: dict[str, int] = dataclasses.field(default_factory=dict)
    """Samples by split, if a field divides them."""
    files: int = 0
    """Files, without the manifest."""
    bytes: int = 0
    """Bytes of these files."""
    resumed: int = 0
    """Samples that an earlier call had written, which was interrupted."""
    restarted: str | None = None
    """Why what an earlier call had written was thrown away."""
    seconds: float = 0.0
    """How long this call took."""

    def __str__(self) -> str:
        text = (f"{self.count:,} samples · {self.files:,} files of {self.bytes:,} bytes · {self.format} · {self.path}"
                f" · {self.seconds:.1f} s")  # fmt: skip
        text += f" · {self.resumed:,} samples of an earlier call" if self.resumed else ""
        return text + (f" · began anew: {self.restarted}" if self.restarted else "")
