"""The runs that this process has open: whose log it writes, or whose lease it has.

What this process changes meanwhile names them. It was made while they were open; who calls knows of no more.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from tensordb_data.common.system.fork import at_fork

if TYPE_CHECKING:
    from tensordb_data.mongo.address import Address
    from tensordb_data.warehouse.context import Warehouse

_Open = tuple["weakref.ref[Any]", int, "Address", str]

# Replaced as a whole: a reader needs no lock.
_open: tuple[_Open, ...] = ()
_changing = threading.Lock()


def note_open(owner: object, warehouse: Warehouse, run: str) -> None:
    """Note that a run is open, until `note_closed`, or until its owner is gone."""
    global _open
    with _changing:
        there = tuple(one for one in _open if one[0]() is not None)
        _open = (*there, (weakref.ref(owner), os.getpid(), warehouse.address, run))


def note_closed(owner: object) -> None:
    """Note that the run of an owner is open no more because of it."""
    global _open
    with _changing:
        _open = tuple(one for one in _open if one[0]() not in (None, owner))


def open_runs(warehouse: Warehouse) -> list[str]:
    """The names of the runs of a project that are open in this process, in order. Those of a parent are not its own."""
    here = os.getpid(), warehouse.address
    return sorted({run for owner, pid, address, run in _open if (pid, address) == here and owner() is not None})


def _after_fork() -> None:
    global _changing
    _changing = threading.Lock()  # another thread of the parent may have held it


at_fork(after_in_child=_after_fork)
