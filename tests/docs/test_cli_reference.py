"""The reference of the command is that of the command."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_cli", FOLDER / "generate_cli.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def commands(group: Any, above: str = "tensordb") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{above} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{above} {name}")


def example(name: str, command: Any) -> str | None:
    """What follows the command's name in the example of its help."""
    text = "\n\n".join(filter(None, [command.help, command.epilog]))
    found = re.search(rf"Example: {name}(?= |\n\n|\Z)(.*?)(\n\n|\Z)", text, re.DOTALL)
    return found and found[1].replace("\\\n", " ")


def test_the_reference_is_up_to_date() -> None:
    # By words: how they are laid out may change with the version of typer.
    written, now = (FOLDER / "cli.md").read_text().split(), generator().page().split()
    assert set(written) == set(now), f"run `make docs`; differs: {sorted(set(written) ^ set(now))}"


def test_every_command_and_option_has_a_help_and_an_example() -> None:
    import typer

    from tensordb_data.cli.main import app

    for name, command in commands(typer.main.get_group(app)):  # type: ignore[attr-defined]
        assert command.help, f"{name} has no help"
        silent = [param.name for param in command.params if not getattr(param, "help", None)]
        assert not silent, f"{name}: no help for {silent}"
        if not hasattr(command, "commands"):
            assert example(name, command) is not None, f"{name}: no `Example: {name} …` in help or cli/examples.py"


def test_examples_are_command_lines_of_the_command() -> None:
    """Their options exist; what they name need not."""
    import typer

    from tensordb_data.cli.main import app

    for name, command in commands(typer.main.get_group(app)):  # type: ignore[attr-defined]
        if not hasattr(command, "commands"):
            command.make_context(name, shlex.split(example(name, command) or ""))


def test_the_shell_completes() -> None:
    program = str(Path(sys.executable).with_name("tensordb"))
    for typed, wanted in (
        ("tensordb sea", "search"),
        ("tensordb logs pl", "plot"),
        ("tensordb find arch", "architectures"),
    ):
        environment = {
            **os.environ, "_TENSORDB_COMPLETE": "complete_bash", "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        }  # fmt: skip
        done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [wanted], done
