"""What stands in where a system lacks a call or a module."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tensordb_data.common.system import machine, mmap, modules, private
from tensordb_data.common.system.fork import at_fork
from tensordb_data.errors import UnsupportedError


def test_optional_modules() -> None:
    assert modules.optional("os") is os and modules.optional("winreg_of_nobody") is None


def test_what_runs_on_linux_only_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    modules.require_linux("ships", "swim", UnsupportedError)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UnsupportedError, match=r"^ships run on Linux only, and this is darwin: swim$"):
        modules.require_linux("ships", "swim", UnsupportedError)


def test_processors_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert machine.cpus() == 5
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 7})
    assert machine.cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cpus() == 1
    assert (machine.memory() or 0) > 1 << 28
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory() is None


def test_nothing_is_called_at_a_fork_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **calls: given.append(calls))
    at_fork(before=test_optional_modules)
    assert given == [{"before": test_optional_modules}]
    monkeypatch.delattr(os, "register_at_fork")
    at_fork(before=test_optional_modules)
    assert len(given) == 1


def test_files_are_mapped_without_a_library_of_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(200)))
    monkeypatch.setattr(mmap, "libc", None)
    array = mmap.map_file(tmp_path / "file", 100)
    assert array.tolist() == [*range(100)] and not array.flags.writeable and bytes(mmap.copied(array[5:7])) == b"\5\6"
    assert isinstance(array, np.ndarray) and array.dtype == np.uint8
    with pytest.raises(OSError, match="file"):
        mmap.map_file(tmp_path / "file", 300)


def test_a_file_of_ones_own_without_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o666)
    with pytest.raises(private.ForeignFileError):
        private.open_own(tmp_path / "file")
    monkeypatch.delattr(os, "geteuid")
    os.close(private.open_own(tmp_path / "file"))
