"""Pictures in Mermaid's language, which a forge draws itself, drawn as SVG files when the site is built."""

from __future__ import annotations

import hashlib
import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Mermaid(SphinxDirective):
    """A picture, with its line `accTitle:` as the text for those who cannot see it. A click shows it alone."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        from mermaidx import render

        source = "\n".join(self.content)
        title = re.search(r"^\s*accTitle:\s*(.+)$", source, re.MULTILINE)
        if title is None:
            raise self.error("a mermaid picture says what it shows in a line `accTitle: …`; this one has none")
        name = f"mermaid-{hashlib.sha256(source.encode()).hexdigest()[:16]}.svg"
        folder = Path(self.env.app.outdir, "_images")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(render(source).svg(), encoding="utf-8")
        path = "../" * self.env.docname.count("/") + f"_images/{name}"
        image = f'<img src="{path}" alt="{html.escape(title[1])}">'
        return [nodes.raw("", f'<a class="mermaid" href="{path}">{image}</a>', format="html")]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
