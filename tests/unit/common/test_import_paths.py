"""What `allow=` lets through: what was named, and nothing that hides behind it."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data import ArchitectureError, NotAllowedError, QueryError
from tensordb_data.common.import_paths import Allow, import_path, resolve, split


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Packages `mypkg` and `mypkgevil`, which leave a trace when they are imported."""
    code = "import builtins\nbuiltins.imported = [*getattr(builtins, 'imported', []), __name__]\n"
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text(code)
    (tmp_path / "mypkg" / "nets.py").write_text(
        code + "import os, functools\nfrom subprocess import Popen\nfrom os import system\n"
        "from mypkg.inner import deep\nlater = functools.partial(system, 'true')\n"
        "def cnn(width=1):\n    return ('cnn', width)\n"
        "class Net:\n    @classmethod\n    def small(cls):\n        return cls()\n"
        "class Shell(Popen):\n    pass\n"
    )
    (tmp_path / "mypkg" / "inner.py").write_text(code + "def deep():\n    return 'deep'\n")
    (tmp_path / "mypkgevil.py").write_text(code + "def cnn():\n    return 'evil'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import builtins

    builtins.imported = []
    yield lambda: builtins.imported
    for name in [name for name in sys.modules if name.split(".")[0] in ("mypkg", "mypkgevil")]:
        del sys.modules[name]
    del builtins.imported


@pytest.mark.parametrize(
    ("entry", "reference"),
    [
        ("mypkg.", "mypkg.nets:cnn"),
        ("mypkg.nets", "mypkg.nets:cnn"),
        ("mypkg.nets:cnn", "mypkg.nets:cnn"),
        ("mypkg.", "mypkg.nets:Net"),
        ("mypkg.", "mypkg.nets:Net.small"),
        ("mypkg.", "mypkg.nets:deep"),  # defined elsewhere in what is allowed
        ("mypkg.", "mypkg.nets:Shell"),
        ("mypkg.nets:system", "mypkg.nets:system"),  # named itself
    ],
)
def test_allowed(modules, entry, reference):
    assert callable(resolve(reference, Allow([entry])))


@pytest.mark.parametrize(
    ("entry", "reference"),
    [
        ("mypkg.", "mypkgevil:cnn"),
        ("mypkg", "mypkgevil:cnn"),
        ("mypkg", "mypkg.nets:cnn"),  # the module alone, not what is in the package
        ("mypkg.net", "mypkg.nets:cnn"),
        ("mypkg.nets:cn", "mypkg.nets:cnn"),
        ("mypkg.nets:cnn", "mypkg.nets:Net"),
        ("mypkg.", "os:system"),
        ("mypkg.", "builtins:eval"),
    ],
)
def test_refused_without_an_import(modules, entry, reference):
    with pytest.raises(NotAllowedError, match="allow="):
        resolve(reference, Allow([entry]))
    assert modules() == []


@pytest.mark.parametrize(
    "reference",
    [
        "mypkg.nets:os.system",
        "mypkg.nets:system",
        "mypkg.nets:Popen",
        "mypkg.nets:Popen.communicate",
        "mypkg.nets:Shell.communicate",
        "mypkg.nets:os",
    ],
)
def test_what_an_allowed_module_has_imported_is_no_part_of_it(modules, reference):
    with pytest.raises(NotAllowedError):
        resolve(reference, Allow(["mypkg."]))


def test_a_part_of_a_package_does_not_stand_for_what_it_imports(modules):
    with pytest.raises(NotAllowedError, match=r"defined in mypkg\.inner"):
        resolve("mypkg.nets:deep", Allow(["mypkg.nets"]))


@pytest.mark.parametrize("reference", ["mypkg.nets:later", "mypkg.nets:nothing", "mypkg.nothing:cnn"])
def test_no_such_callable(modules, reference):
    with pytest.raises(ArchitectureError):
        resolve(reference, Allow(["mypkg."]))


@pytest.mark.parametrize("text", ["", "cnn", "mypkg:", ":cnn", "my pkg:cnn", "mypkg.nets:cnn()", "a..b:c",
                                  "a:__class__", "a:b.__globals__", "../x:y", None, 3])  # fmt: skip
def test_no_reference(text):
    with pytest.raises(ArchitectureError, match="expected a reference"):
        split(text)


@pytest.mark.parametrize("entries", ["mypkg.", [""], ["."], ["*"], [3], [":cnn"], ["mypkg.:cnn"], ["my pkg"]])
def test_no_list(entries):
    with pytest.raises(NotAllowedError, match="allow="):
        Allow(entries)


NAME = st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4}){0,3}", fullmatch=True)


@given(NAME, NAME)
def test_a_package_covers_itself_and_what_is_in_it_only(package, module):
    inside = module == package or module.startswith(package + ".")
    assert Allow([package + "."]).module(module) is inside
    assert Allow([package]).module(module) is (module == package)


@pytest.mark.parametrize("path", ["mypkg.nets:cnn", "mypkg.nets:Net.small", "mypkg.nets:later", "os:system"])
def test_a_trusted_path_leads_to_anything_that_can_be_called(modules, path):
    assert callable(resolve(path))


@pytest.mark.parametrize("path", ["cnn", "my pkg:cnn", "mypkg.nets:nothing", "mypkg.nothing:cnn", "mypkg:nets"])
def test_a_trusted_path_that_leads_nowhere(modules, path):
    with pytest.raises(QueryError, match=path.split(":")[0]):
        resolve(path)


def test_the_path_of_a_callable(modules):
    found = resolve("mypkg.nets:Net")
    assert import_path(found) == import_path("mypkg.nets:Net") == "mypkg.nets:Net"
    for nameless in (lambda: None, resolve("mypkg.nets:later"), found().small):
        with pytest.raises(QueryError, match="has none"):
            import_path(nameless)
