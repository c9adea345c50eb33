"""Processes that a test starts."""

from __future__ import annotations

import subprocess
from typing import Any


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` whose `with` ends the process when the block fails. Else it would wait for it, maybe for ever,
    and the error would not be told.
    """

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)
