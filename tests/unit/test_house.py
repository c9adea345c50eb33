"""The house: who imports whom, how large a folder is, who knows what is private. `make lint` has the layers."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
CODE = (ROOT / "tensordb_data", ROOT / "integrations")


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Which modules each module imports, in functions and for types too; the integrations under their own names."""
    view = tmp_path / "tensordb_data"
    view.mkdir()
    for path in (*(ROOT / "tensordb_data").iterdir(), *(ROOT / "integrations").iterdir()):
        (view / path.name).symlink_to(path)
    # grimp asks Python where the package is, and this process has imported it from somewhere else.
    found = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensordb_data"}
    for name in found:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("tensordb_data", cache_dir=None)
    return {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}


def circles(imports: dict[str, set[str]]) -> set[str]:
    """Modules that import themselves by way of others."""
    left = dict(imports)
    while ends := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ends}
    found: set[str] = set()
    for name in left:
        reached: set[str] = set()
        ahead = [name]
        while ahead:
            new = left.get(ahead.pop(), set()) & left.keys() - reached
            reached |= new
            ahead += new
        if name in reached:
            found.add(name)
    return found


def test_no_file_is_in_an_import_circle(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 200
    assert circles(imports) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


@pytest.mark.parametrize("top", ["tensordb_data", "integrations", "tests", "benchmarks", "examples"])
def test_no_folder_has_more_than_twenty_files(top: str) -> None:
    folders = {path.parent for path in (ROOT / top).rglob("*.py")}
    sizes = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert not {folder: n for folder, n in sizes.items() if n > 20}


def doors(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        owner = node.value
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if name in ("db", "_db", "warehouse", "_warehouse", "selection", "bound"):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {name}.{node.attr}"


def test_nobody_uses_what_is_private_in_the_facade_or_the_context() -> None:
    facade = {ROOT / "tensordb_data/api/database.py", ROOT / "tensordb_data/api/selection.py"}
    tops = (*CODE, ROOT / "tests", ROOT / "benchmarks", ROOT / "examples")
    files = [path for top in tops for path in top.rglob("*.py") if path not in facade]
    assert [door for path in files for door in doors(path)] == []
