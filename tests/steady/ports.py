"""Ports of 127.0.0.1 for the servers of tests, which listen a moment after their port was chosen."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

# Below those that the kernel gives to clients, and to servers that ask for any: it might, before the server is there.
_FIRST, _LAST, _BLOCK = 15_000, 32_000, 100


def _own_ports() -> Iterator[int]:
    """Those of a block that no other process of tests has, again and again."""
    for first in range(_FIRST, _LAST, _BLOCK):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0tensordb-tests-ports-{first}")  # no file: free when this process has ended
        except OSError:
            mark.close()
            continue
        with mark:
            yield from itertools.cycle(range(first, first + _BLOCK))
    raise RuntimeError("all blocks of ports are in use by processes of tests")


_ports = _own_ports()


def free_port() -> int:
    """A port that nothing listens on, and that no other process of tests chooses."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports have no end")
