"""What is installed is what is in the tree, and importing the core stays light."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def listed() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_every_package_is_listed() -> None:
    packages = set(listed()["options"]["packages"].split())
    core = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "tensordb_data").rglob("*.py")}
    folders = {path.parent.relative_to(ROOT / "integrations") for path in (ROOT / "integrations").rglob("*.py")}
    integrations = {".".join(("tensordb_data", *path.parts)) for path in folders}
    assert packages == core | integrations, "list the packages of the tree in setup.cfg"


def test_the_core_loads_no_framework() -> None:
    code = (
        "import tensordb_data, sys; "
        "heavy = {'torch', 'tensorflow', 'keras', 'cv2', 'albumentations', 'pandas', 'pyarrow', 'matplotlib'}; "
        "heavy |= {'multiprocessing', 'psutil', 'av', 'soundfile', 'soxr', 'pydicom', 'nibabel'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_all_modules_and_the_type_marker(tmp_path: Path) -> None:
    # From a copy, so that nothing is built in the tree.
    for name in ("tensordb_data", "integrations"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "tensordb_data").rglob("*.py")}
    other = ROOT / "integrations"
    wanted |= {f"tensordb_data/{path.relative_to(other)}" for path in other.rglob("*.py")}
    for folder in ("templates", "static"):  # of the page; the licence of what others have made is among them
        files = [path for path in (ROOT / "tensordb_data/ui" / folder).rglob("*") if path.is_file()]
        assert files
        wanted |= {str(path.relative_to(ROOT)) for path in files}
    assert wanted | {"tensordb_data/py.typed"} <= held
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/", "examples/", "integrations/"))]


def test_the_source_distribution_holds_tests_docs_and_examples(tmp_path: Path) -> None:
    made = (".*", "build", "dist", "demo", "results", "__pycache__", "*.egg-info")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*made))
    wanted = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    build = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (path,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert not wanted - held, "name them in MANIFEST.in"
    for folder in ("tests", "docs", "examples", "tensordb_data", "integrations"):
        assert any(name.startswith(f"{folder}/") for name in held)


def test_the_demo_imports_nothing_that_its_extra_does_not_name() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, named = about["optional-dependencies"], set()
    pending = [*about["dependencies"], *extras["demo"]]
    while pending:
        found = re.match(r"([\w.-]+)(?:\[(.*)\])?", pending.pop())
        assert found is not None
        if found[1] == about["name"]:
            pending += [requirement for extra in found[2].split(",") for requirement in extras[extra]]
        named.add(found[1].lower().replace("_", "-"))
    other = {"embed_ray.py"}  # which says that it needs the extra `ray`
    trees = [ast.parse(path.read_text()) for path in (ROOT / "examples").rglob("*.py") if path.name not in other]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    made_by = importlib.metadata.packages_distributions()
    for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"tensordb_data"}:
        distributions = {name.lower().replace("_", "-") for name in made_by[module]}
        assert named & distributions, f"{module} is imported, and the extra `demo` names none of {distributions}"
