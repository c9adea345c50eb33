"""What the site needs beyond the Markdown pages: their order, and links to files that are not part of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\]\(\.\./([^)\s]*)\)")


def prepare(app: Any, docname: str, source: list[str]) -> None:
    """Links out of docs/ lead to the repository; the front page gets the order of all pages."""
    root = Path(app.srcdir).parent

    def link(found: re.Match[str]) -> str:
        kind = "tree" if (root / found[1].split("#")[0]).is_dir() else "blob"
        return f"]({app.config.repository}/{kind}/main/{found[1]})"

    if "/" not in docname:  # from a folder of docs/, one step up leads to other pages
        source[0] = OUTSIDE.sub(link, source[0])
    if docname == app.config.root_doc:
        for caption, pages in app.config.contents.items():
            lines = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("repository", None, "env", [str])
    app.add_config_value("contents", {}, "env", [dict])
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
