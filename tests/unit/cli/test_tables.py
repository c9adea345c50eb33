"""Tables of the command line: one line a row, and the ids whole."""

from __future__ import annotations

import pytest

from tensordb_data.cli.tables import table

COLUMNS = dict.fromkeys("abcdefghijklmnop", "0123456789ab")
ID = "6b05afd5e3eb8e80cc24b60d"
ROWS = [{"id": ID, "text": "two\nlines, and more of it than a cell has " * 3, "empty": None, **COLUMNS}]


@pytest.mark.parametrize("width", [30, 80, 500])
def test_a_row_is_a_line_whatever_the_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tensordb_data.cli.output._PIPED", width)
    table(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert sum(ID in line for line in lines) == 1
    assert all(len(line) <= width for line in lines if line[:1] in "┏┃┡│└")
    named = lines[1] + " ".join(lines[5:])
    assert "empty" not in named and "p" in named.replace("┃", " ").replace(",", " ").split()
    assert ("not shown" in lines[-1] or "not shown" in " ".join(lines[5:])) == (width < 500)


def test_nothing_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    table([])
    table([{"a": None}])
    assert capsys.readouterr().out == ""
