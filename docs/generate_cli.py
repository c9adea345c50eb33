"""Writes docs/cli.md from the `--help` of every command: python docs/generate_cli.py"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command `tensordb`

Generated from `--help` by `make docs`. With `--json`, commands that list things print one object a line, as they come:
for `jq`, `grep`, or `python -m json.tool --json-lines`. Exit status: 0; 1 with one line on stderr that says what is
wrong; 2 for a malformed command line.
"""


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    import typer

    from tensordb_data.cli.main import app

    return HEAD + "".join(section(["tensordb", *words]) for words in ([], *_words(typer.main.get_group(app))))


def _words(group: Any) -> Iterator[list[str]]:
    """The words of each command, those of groups with their subcommands after them."""
    for name, command in sorted(group.commands.items()):
        yield [name]
        if hasattr(command, "commands"):
            yield from ([name, *words] for words in _words(command))


def section(command: list[str]) -> str:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    environment.pop("TENSORDB", None)
    program = [str(Path(sys.executable).with_name(command[0])), *command[1:], "--help"]
    text = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout
    body = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"\n## {' '.join(command)}\n\n```text\n{body}\n```\n"


if __name__ == "__main__":
    main()
