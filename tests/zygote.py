"""A process that has imported PyTorch and waits to be a program of a test: see tests/warm.py."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import runpy
import selectors
import socket
import sys
import types
from typing import Any


def preload() -> None:
    """Import what programs of tests spend seconds on."""

    import tensordb_data.torch  # noqa: F401

    gc.collect()
    gc.freeze()


def next_request(control: socket.socket) -> dict[str, Any]:
    """Fork at each request. Returns in the child; when the tests have ended, the process ends."""
    waiting = selectors.DefaultSelector()
    waiting.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not control:
                os.write(key.data[1], str(os.waitpid(key.data[0], 0)[1]).encode())
                waiting.unregister(key.fd)
                os.close(key.fd)
                os.close(key.data[1])
                continue
            data, fds, _, _ = socket.recv_fds(control, 1 << 20, 4)
            if not data:
                sys.exit()
            pid = os.fork()
            if pid == 0:
                for other in list(waiting.get_map().values()):
                    if other.fileobj is not control:
                        os.close(other.fd)
                        os.close(other.data[1])
                waiting.close()
                control.close()
                for number, fd in enumerate(fds[:3]):
                    os.dup2(fd, number)
                for fd in fds:
                    os.close(fd)
                request: dict[str, Any] = json.loads(data)
                return request
            for fd in fds[:3]:
                os.close(fd)
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, fds[3]))
            control.send(str(pid).encode())


def become(request: dict[str, Any]) -> None:
    """Take the place of a Python that was started with these arguments."""
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    kind, *rest = request["arguments"]
    if kind == "-m":
        sys.argv = rest
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        code = compile(rest[0], "<string>", "exec")
    else:
        sys.argv, sys.path[0] = [kind, *rest], os.path.dirname(os.path.abspath(kind))
        main.__file__ = kind
        with open(kind, "rb") as file:
            code = compile(file.read(), kind, "exec")
    exec(code, main.__dict__)  # noqa: S102 - a program of the tests


if __name__ == "__main__":
    preload()
    with contextlib.suppress(KeyboardInterrupt):
        _request = next_request(socket.socket(fileno=int(sys.argv[1])))
    become(_request)
