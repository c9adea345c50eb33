"""The site is built without a warning, draws its picture, and its reference has every public name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "tensordb_data": "tensordb_data",
    "tensordb_data.continuous": "tensordb_data/continuous",
    "tensordb_data.ingest": "tensordb_data/ingest",
    "tensordb_data.torch": "integrations/torch",
    "tensordb_data.tf": "integrations/tf",
    "tensordb_data.ray": "integrations/ray",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "doctrees")]
    done = subprocess.run([*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder / "html"


def public_names() -> set[str]:
    names = {f"tensordb_data.torch.{module}.StepCheckpoint" for module in ("lightning", "transformers")}
    for module, folder in PUBLIC.items():
        for node in ast.parse((ROOT / folder / "__init__.py").read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= {f"{module}.{name}" for name in ast.literal_eval(node.value)}
    return names


def test_the_reference_has_every_public_name(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    described = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    # The errors are described where they are defined, and exported by `tensordb_data` too.
    described |= {name.replace(".errors.", ".") for name in described}
    # So are the classes that a program reaches by the methods of others.
    described |= {name.replace("reached.", "tensordb_data.") for name in described}
    assert not public_names() - described, f"not in docs/reference/: {sorted(public_names() - described)}"
    # What they lead to is there as well.
    assert {"reached.Writer.add_many", "reached.Stream.state_dict", "reached.Collection.find"} <= described


def test_every_page_is_there_and_can_be_reached_from_the_front_page(site: Path) -> None:
    front = (site / "index.html").read_text()
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("frameworks/*.md")]:
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / name).read_text().count("<h1>") == 1, name
        assert page.stem == "index" or f'href="{name}"' in front, f"{page.name} is not in `contents` of conf.py"


def test_the_picture_is_drawn(site: Path) -> None:
    found = re.search(r'<img src="(_images/mermaid-\w+\.svg)" alt="([^"]+)"', (site / "architecture.html").read_text())
    assert found is not None and found[2]
    picture = (site / found[1]).read_text()
    assert picture.startswith("<svg") and "checkpoint/, params/" in picture


def test_links_out_of_the_docs_lead_to_the_repository(site: Path) -> None:
    for page in site.glob("*.html"):
        assert not re.findall(r'href="\.\./', page.read_text()), page.name
