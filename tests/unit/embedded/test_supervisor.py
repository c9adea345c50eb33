from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tensordb_data.embedded import supervisor
from tensordb_data.embedded.supervisor import LOG_BYTES, Log, explain

CONFIG: dict[str, object] = {"folder": "/w", "port": 27018}


def test_imports_the_standard_library_only() -> None:
    tree = ast.parse(Path(str(supervisor.__file__)).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("status", "line", "message"),
    [
        (127, "mongod: error while loading shared libraries: libcurl.so.4: cannot open", "system library libcurl.so.4"),
        (-6, "WT_PANIC: No space left on device", "the disk that holds /w is full"),
        (100, "DBPathInUse: Unable to lock the lock file", "in use by another mongod"),
        (48, "SocketException: Address already in use", "port 27018 on 127.0.0.1 is taken"),
        (62, "", "incompatible MongoDB version"),
        (1, "open: Permission denied", "may not write"),
        (-4, "", "AVX"),
        (-9, "words", "ended with signal 9; see /w/mongod.log. Its last words: words"),
        (14, '{"s":"F","msg":"Fatal","attr":{"a":1}}', 'Fatal {"a": 1}'),
        (14, "", "status 14"),
    ],
)
def test_explain(status: int, line: str, message: str) -> None:
    reason = explain(status, ["start", line, "end"] if line and "words" not in line else [line], CONFIG)
    assert message in reason
    assert "\n" not in reason


def test_log_is_capped(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    line = b"x" * (1 << 20)
    for _ in range(40):
        log.write(line)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(entry.stat().st_size <= LOG_BYTES + len(line) for entry in tmp_path.iterdir())


def test_log_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    Log(str(tmp_path / "no" / "log")).write(b"x")
