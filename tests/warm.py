"""Programs that use PyTorch, in processes of their own, without the seconds that its import takes.

`Popen` and `run` are those of `subprocess`, for commands that begin with `sys.executable`: the program runs in a
process that is forked from one which has imported PyTorch before (tests/zygote.py). Its streams, its environment, how
it takes signals and how it ends are as in a process that was started anew.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.steady import processes

_ENVIRONMENT = dict(os.environ)  # before a test has changed it
ZYGOTE = Path(__file__).with_name("zygote.py")


class _Zygote:
    """Started with the first program, ended with the tests."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, str(ZYGOTE), str(theirs.fileno())]
            # In a session of its own: a Ctrl-C on the terminal is for the tests.
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=_ENVIRONMENT, start_new_session=True
            )


_zygote: _Zygote | None = None


def kept() -> set[int]:
    """The process that stays."""
    return set() if _zygote is None else {_zygote.process.pid}


class Popen(processes.Popen):
    """`subprocess.Popen` for `[sys.executable, ...]`."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int,
                       c2pread: int, c2pwrite: int, errread: int, errwrite: int, *rest: Any) -> None:  # fmt: skip
        global _zygote
        assert args[0] == sys.executable and not (preexec_fn or pass_fds or shell)
        assert args[1] in ("-c", "-m") or not args[1].startswith("-")
        if _zygote is None:
            _zygote = _Zygote()
        fds = [own if fd == -1 else fd for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
        self._status, write = os.pipe()
        request = {
            "arguments": [os.fspath(argument) for argument in args[1:]],
            "cwd": os.getcwd() if cwd is None else os.fspath(cwd),
            "env": dict(os.environ if env is None else env),
            "session": rest[5],  # after restore_signals, gid, gids, uid and umask
        }
        socket.send_fds(_zygote.control, [json.dumps(request).encode()], [*fds, write])
        os.close(write)
        for fd in {p2cread, c2pwrite, errwrite} - {-1, getattr(self, "_devnull", -1)}:
            os.close(fd)
        if hasattr(self, "_devnull"):
            os.close(self._devnull)
        self.pid = int(_zygote.control.recv(32))
        self._child_created = self._closed_child_pipe_fds = True

    def _ended(self, block: bool) -> int | None:
        """How it has ended, as `os.waitpid` says it."""
        if self._status < 0 or not (block or select.select([self._status], [], [], 0)[0]):
            return None
        status = int(os.read(self._status, 32))
        os.close(self._status)
        self._status = -1
        return status

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        status = self._ended(block=not wait_flags & os.WNOHANG)
        return (0, 0) if status is None else (self.pid, status)

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and getattr(self, "_status", -1) >= 0 and self._waitpid_lock.acquire(False):
            try:
                status = self._ended(block=False)
                if status is not None:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(command: list[Any], *, timeout: float | None = None, capture_output: bool = False, check: bool = False,
        **options: Any) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """`subprocess.run` for `[sys.executable, ...]`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
