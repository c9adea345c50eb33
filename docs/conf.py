"""The site: `make site` builds it into build/site. Its pages are the Markdown files here, as a forge shows them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
_about = (HERE.parent / "pyproject.toml").read_text()


def _said(key: str) -> str:
    found = re.search(rf'^{key} = "(.+)"$', _about, re.MULTILINE)
    if found is None:
        raise ValueError(f'pyproject.toml has no line `{key} = "…"`, which the site needs')
    return found[1]


project = "TensorDB"
author = project_copyright = "the authors of TensorDB"
version = release = _said("version")
repository = _said("Source")

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton",
    "mermaid", "pages", "reached",
]  # fmt: skip
root_doc = "index"
exclude_patterns = ["_ext"]

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

# The frameworks are not needed to read docstrings, and take half a minute to import.
autodoc_mock_imports = [
    "accelerate", "keras", "lightning", "pytorch_lightning", "ray", "tensorflow", "torch", "transformers",
]  # fmt: skip
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Names are shown as they are written after an import, and `in quotes` means code, as in Markdown.
add_module_names = False
python_use_unqualified_type_names = True
default_role = "code"
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"TensorDB {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp"

# The order of the pages; `pages` puts it into the front page, which stays plain Markdown.
contents = {
    "Begin": ["tutorial", "ingest", "formats-in", "media", "streams", "table", "feedback", "time", "samples-out",
              "ranks", "saves", "platforms", "scale", "migration"],
    "Frameworks": [
        "frameworks/accelerate", "frameworks/lightning", "frameworks/hugging-face", "frameworks/keras",
        "frameworks/fsdp2",
    ],
    "By topic": ["live", "changes", "logs", "architectures", "jobs", "engines", "continuous", "words", "ui", "terminal",
                 "metrics", "housekeeping", "embedded", "share", "clusters", "security", "reliability"],
    "Reference": [
        "reference/warehouse", "reference/streams", "reference/torch", "reference/tf", "reference/ray",
        "reference/continuous", "reference/ingest", "reference/errors", "cli",
    ],
    "How it works": ["architecture", "format"],
}  # fmt: skip
