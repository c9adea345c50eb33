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
    """The text of the page, from a process of its own: typer reads the width of lines when it is imported."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    environment.pop("TENSORDB", None)
    command = [sys.executable, __file__, "--print"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def text() -> str:
    import typer
    from typer.testing import CliRunner

    from tensordb_data.cli.main import app

    def section(words: list[str]) -> str:
        shown = CliRunner().invoke(app, [*words, "--help"], prog_name="tensordb").stdout
        body = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        return f"\n## {' '.join(['tensordb', *words])}\n\n```text\n{body}\n```\n"

    return HEAD + "".join(section(words) for words in ([], *_words(typer.main.get_group(app))))


def _words(group: Any) -> Iterator[list[str]]:
    """The words of each command, those of groups with their subcommands after them."""
    for name, command in sorted(group.commands.items()):
        yield [name]
        if hasattr(command, "commands"):
            yield from ([name, *words] for words in _words(command))


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(text())
    else:
        main()
