"""The folder for what this user can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`tensordb` in `$XDG_CACHE_HOME`, by default in `~/.cache`. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensordb"
