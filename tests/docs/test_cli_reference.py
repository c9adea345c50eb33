"""The reference of the command is that of the command."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs"


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", FOLDER / "generate_cli.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    # By words: how they are laid out may change with the version of typer.
    written, now = (FOLDER / "cli.md").read_text().split(), generator.page().split()
    assert set(written) == set(now), f"run `make docs`; differs: {sorted(set(written) ^ set(now))}"


def test_every_command_and_option_has_a_help() -> None:
    import typer

    from tensordb_data.cli.main import app

    def all_of(group, before=""):  # type: ignore[no-untyped-def]
        for name, command in group.commands.items():
            yield f"{before}{name}", command
            yield from all_of(command, f"{name} ") if hasattr(command, "commands") else ()

    for name, command in all_of(typer.main.get_group(app)):  # type: ignore[attr-defined]
        assert command.help, f"tensordb {name} has no help"
        silent = [param.name for param in command.params if not getattr(param, "help", None)]
        assert not silent, f"tensordb {name}: no help for {silent}"
