"""Paths in `file://` URLs."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit


def file_path(url: str) -> Path:
    """The path that a `file://` URL names, as `Path.as_uri` writes it: on Windows `file:///C:/blobs` is `C:/blobs`."""
    path = unquote(urlsplit(url).path)
    return Path(path.removeprefix("/") if os.name == "nt" else path)
