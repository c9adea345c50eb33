"""The options that say where blobs, cache and files of others are: each command that opens a warehouse has them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any, get_type_hints

import typer

Blobs = Annotated[
    str | None,
    typer.Option("--blobs", envvar="TENSORDB_BLOBS", help="Where blobs are: a folder or URL.", show_envvar=True),
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", envvar="TENSORDB_CACHE", help="A folder on a local disk for blobs.", show_envvar=True),
]
Roots = Annotated[
    list[str] | None,
    typer.Option("--root", metavar="NAME=PATH", help="The folder of files that samples point into. May be repeated."),
]
PLACES: dict[str, Any] = {"blobs": Blobs, "cache": Cache, "roots": Roots}
OF_THE_SERVER = ("up", "down", "uri", "upgrade", "backup restore")
"""Commands that are about the server or the files of a folder, and open no warehouse that has these places already."""

given: ContextVar[dict[str, Any]] = ContextVar("given", default={})  # noqa: B039 - is replaced, never changed
"""The values of these options in the command that runs."""


def add_places(app: typer.Typer, above: str = "") -> None:
    """Give these options to each command that has `--db`."""
    for command in app.registered_commands:
        name = f"{above}{command.name or getattr(command.callback, '__name__', '')}"
        if command.callback is not None and name not in OF_THE_SERVER:
            command.callback = _with_places(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_places(group.typer_instance, f"{above}{group.name} ")


def _with_places(callback: Callable[..., Any]) -> Callable[..., Any]:
    found = inspect.signature(callback)
    if "db" not in found.parameters:
        return callback

    @functools.wraps(callback)
    def command(**values: Any) -> Any:
        token = given.set({name: values.pop(name) for name in PLACES})
        try:
            return callback(**values)
        finally:
            given.reset(token)

    kinds = {**get_type_hints(callback, include_extras=True), **PLACES}
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in PLACES.items()]  # fmt: skip
    own = [each.replace(annotation=kinds[name], kind=inspect.Parameter.KEYWORD_ONLY)
           for name, each in found.parameters.items()]  # fmt: skip
    vars(command)["__signature__"] = found.replace(parameters=[*own, *more])
    command.__annotations__ = kinds
    return command
