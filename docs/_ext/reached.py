"""Classes that users meet without importing them, such as what `db.data.writer(...)` returns.

They are looked up from the public names that lead to them, so that no page names a module that is nobody's business.
The reference pages find them in a module `reached`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
import sys
import types
import typing
from typing import Any

from sphinx import addnodes
from sphinx.ext.autodoc.mock import mock


def load() -> None:
    """Fill the module `reached`."""
    import tensordb_data as tdb

    db, selection = tdb.TensorDB, tdb.Selection
    found = [_returned(getattr(db, name)) for name in ("data", "params", "jobs", "logs", "architectures")]
    data, params, _, logs, _ = found
    found += [cls for collection in found for cls in _generic(collection)]
    found += [_returned(getattr(db, name)) for name in ("search", "gc", "fsck", "rebuild", "storage", "ui")]
    found += [_returned(getattr(data, name)) for name in ("writer", "annotate", "compact", "dataset")]
    found += [_returned(getattr(data, name)) for name in ("embed", "import_label_studio")]
    found += [_returned(getattr(selection, name)) for name in ("stream", "watch", "describe", "split")]
    found += [_returned(getattr(selection, name)) for name in ("page", "estimate", "facets", "thumbnails")]
    found += [_returned(getattr(selection, name)) for name in ("similar", "duplicates", "feedback_of", "label_issues")]
    over_time = sys.modules[data.frozen.__module__]
    frozen = _named(over_time, "FrozenSelection")
    found += [frozen, _named(over_time, "FrozenCard"), _returned(frozen.restore)]
    found += [_returned(function) for function in (data.diff, data.overlap, tdb.ParameterSet.samples)]
    found += [_returned(params.sizes), _returned(params.lineage)]
    found += [_returned(function) for function in (tdb.mix, tdb.bench, params.prune, logs.find, logs.run)]
    found += [_returned(logs.import_runs)]
    found += [_returned(function) for function in (params.import_file, tdb.ParameterSet.export)]
    module = sys.modules["reached"] = types.ModuleType("reached")
    for cls in found:
        setattr(module, cls.__name__, cls)


def _generic(collection: type[Any]) -> list[type[Any]]:
    """A collection's base, what it holds, and what all records are."""
    (base,) = types.get_original_bases(collection) if sys.version_info >= (3, 12) else collection.__orig_bases__
    (record,) = typing.get_args(base)
    return [typing.get_origin(base), record, next(cls for cls in record.__mro__ if cls.__name__ == "Record")]


def _returned(member: Any) -> type[Any]:
    """The class that a function or property returns, alone, in a list or by name, as its annotation says."""
    function = member.fget if isinstance(member, property) else inspect.unwrap(member)
    names = re.findall(r"\w+", function.__annotations__["return"])
    name = {"list": names[1:2], "dict": names[2:3]}.get(names[0], names)[0]
    return _named(sys.modules[function.__module__], name)


def _named(module: types.ModuleType, name: str) -> type[Any]:
    """A class by its name in a module, which may import it for type checkers only."""
    if hasattr(module, name):
        return getattr(module, name)  # type: ignore[no-any-return]
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and node.module and name in [one.asname or one.name for one in node.names]:
            real = next(one.name for one in node.names if (one.asname or one.name) == name)
            return getattr(importlib.import_module(node.module), real)  # type: ignore[no-any-return]
    raise LookupError(f"{module.__name__} names {name} in an annotation, but neither defines nor imports it")


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """A type in a signature leads to its entry, whatever module it is defined in."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rsplit(".")[-1]
    domain = env.get_domain("py")
    for name, entry in domain.objects.items():
        if entry.objtype in ("class", "exception") and name.rsplit(".")[-1] == last:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)
    return None


def look_close(app: Any, doctree: Any) -> None:
    """A name in a signature is looked up in its own module first, not wherever something is called the same."""
    for node in doctree.findall(addnodes.pending_xref):
        if node.get("refdomain") == "py" and node.hasattr("refspecific"):
            del node["refspecific"]


def without_constructor(app: Any, what: str, name: str, *rest: Any) -> tuple[str, None] | None:
    """Who gets an object from a method need not know how it is made."""
    return ("", None) if what == "class" and name.startswith("reached.") else None


def begin(app: Any, config: Any) -> None:
    """Imports the library with its frameworks mocked, until the build ends: autodoc looks at them later, too."""
    mocked = contextlib.ExitStack()
    mocked.enter_context(mock(config.autodoc_mock_imports))
    app.connect("build-finished", lambda app, error: mocked.close())
    load()


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", begin)
    app.connect("autodoc-process-signature", without_constructor)
    app.connect("doctree-read", look_close)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
