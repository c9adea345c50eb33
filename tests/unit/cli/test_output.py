"""All output of the commands goes through one place, which lets no stored text command the terminal."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tensordb_data.cli
from tensordb_data.cli.output import grid, note, say
from tensordb_data.cli.tables import table
from tensordb_data.common.text_table import escaped

HOSTILE = "\x1b]0;title\x07 \x1b[2J \x9b31m \u202egnp.exe\u2066 \rover \udcff \u2028"
SHOWN = r"\x1b]0;title\x07 \x1b[2J \x9b31m \u202egnp.exe\u2066 \rover \udcff \u2028"


def test_what_is_escaped_and_what_is_not() -> None:
    assert escaped(HOSTILE) == SHOWN and escaped(SHOWN) == SHOWN
    for kept in ("two\nlines\tand tabs", "日本 ☃ é 👩\u200d🔬", "\\x1b", '{"a": 1}'):
        assert escaped(kept) == kept


def test_ways_to_print(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, err=True)
    note(HOSTILE)
    grid([HOSTILE], [[HOSTILE], ["[red]no markup[/red]"]])
    table([{HOSTILE: HOSTILE, "b": {HOSTILE: [HOSTILE]}}])
    out, err = capsys.readouterr()
    assert err == f"{SHOWN}\n" and out.startswith(f"{SHOWN}\n{SHOWN}\n") and "[red]no markup[/red]" in out
    assert out.isprintable() or not any(c != "\n" and escaped(c) != c for c in out)


def test_no_command_prints_by_itself() -> None:
    folder = Path(tensordb_data.cli.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or path.name == "output.py":
                continue
            called = ast.unparse(node.func)
            assert called not in ("print", "typer.echo", "typer.secho", "Table", "console.print"), (path.name, called)
            assert not called.endswith((".stdout.write", ".stderr.write")), (path.name, called)
