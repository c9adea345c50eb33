"""Entries of the log of changes, which are written in the transaction of the change.

    changes: {_id, p: project, dataset, k: kind, m: number of the mutation, at, n: samples,
              by: {user, host, pid, source, job, runs}, u: the update,
              few | ids: [_id, …], s: sequence numbers, new, old: values, cut: what is left out,
              r: [first, last, …], lo, hi: sequence numbers of new samples, began: time of the first}

`few` is indexed by each `_id`, and has at most 100 of them. `ids` is not: to index each of 10,000 costs a tenth of
their update, and to look through a list takes the server 0.2 ms. What may have keys of any form is in binary: `u` is
one document as BSON; `old` and `new` are documents one after the other, compressed. `s` are int64, in the order of the
ids.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import getpass
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bson
import numpy as np
import zstandard
from bson import Binary, ObjectId

from tensordb_data.runs.open_runs import open_runs

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

FEW = 100
VALUES = 4 << 20
"""Bytes of the earlier values, and of new ones, in an entry at most, before they are compressed."""
UPDATE = 64 << 10
"""Bytes of the update in an entry at most."""
_SECRET = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s]*")
_SIZE = struct.Struct("<i")
_LEVEL = 1
_RUNS = 10  # open runs that an entry names, at most

Doc = dict[str, Any]


_job: list[str] = []


def note_job(name: str) -> None:
    """Note the job that this process runs: changes that it makes name it."""
    _job[:] = [name]


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> Doc:
    user: str | None = None
    with contextlib.suppress(Exception):  # nobody knows this user
        user = getpass.getuser()
    return {"user": user, "host": socket.gethostname(), "pid": pid}


def author(warehouse: Warehouse, source: str | None = None) -> Doc:
    """Who makes a change: user, host and process; and the source, the job and open runs, where there are any.

    Args:
        warehouse: The warehouse.
        source: Who annotates, or what is ingested. If it is a URL, its credentials and options are left out.
    """
    found = dict(_process(os.getpid()))
    if source:
        found["source"] = _SECRET.sub("", source)
    if _job:
        found["job"] = _job[0]
    if runs := open_runs(warehouse):
        found["runs"] = runs[:_RUNS]
    return found


@dataclass(frozen=True)
class Kept:
    """The values that an entry has, as documents one after the other, of which each has its `_id`."""

    old: bytes | None
    """Those before; None if they are too large."""
    new: bytes | None = b""
    """Those after, where no update says them; None if they are too large."""

    def left_out(self) -> list[str]:
        """What is left out, and why."""
        both = (("earlier", self.old), ("new", self.new))
        return [_cut(what) for what, kept in both if kept is None or len(kept) > VALUES]


def write_entry(
    warehouse: Warehouse,
    dataset: str,
    kind: str,
    *,
    number: int | None,
    count: int,
    session: Any = None,
    at: dt.datetime | None = None,
    source: str | None = None,
    ids: Sequence[ObjectId] | None = None,
    sequence: Sequence[int] | None = None,
    update: Mapping[str, Any] | None = None,
    values: Kept | None = None,
) -> None:
    """Write an entry.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        kind: What was done.
        number: The number of the mutation.
        count: How many samples.
        session: Of the transaction that makes the change.
        at: Its time on the clock of the server, if the caller knows it; it saves a look for an entry that is not there.
        source: See `author`.
        ids: The samples.
        sequence: Their sequence numbers, if they are deleted.
        update: What was done to all of them.
        values: The values before and after it.
    """
    old, new, left = (None, None, []) if values is None else (values.old, values.new, values.left_out())
    doc: Doc = {
        "p": warehouse.project, "dataset": dataset, "k": kind, "m": number, "n": count,
        "by": author(warehouse, source),
    }  # fmt: skip
    if ids is not None:
        doc["few" if len(ids) <= FEW else "ids"] = list(ids)
    if sequence is not None:
        doc["s"] = Binary(np.array(sequence, "<i8").tobytes())
    if update is not None:
        packed = bson.encode(update)
        if len(packed) <= UPDATE:
            doc["u"] = Binary(packed)
        else:
            left.append(f"an update of more than {UPDATE >> 10} KiB")
    for name, kept in (("old", old), ("new", new)):
        if kept and len(kept) <= VALUES:
            doc[name] = Binary(zstandard.ZstdCompressor(level=_LEVEL).compress(kept))
    if left:
        doc["cut"] = "; ".join(left)
    if at is not None:
        warehouse.index["changes"].insert_one({**doc, "at": at}, session=session)
        return
    change = {"$set": doc, "$currentDate": {"at": True}}
    warehouse.index["changes"].update_one({"_id": ObjectId()}, change, upsert=True, session=session)


def _cut(what: str) -> str:
    """What an entry says if values are left out of it."""
    return f"{what} values of more than {VALUES >> 20} MiB"


def documents(data: bytes) -> Sequence[tuple[int, int]]:
    """Where each of some documents lies, one after the other.

    Raises:
        ValueError: They are no documents.
        struct.error: The same.
    """
    found, at = [], 0
    while at < len(data):
        size = _SIZE.unpack_from(data, at)[0]
        if not 5 <= size <= len(data) - at:
            raise ValueError(f"expected a document, found one of {size} bytes")
        found.append((at, at + size))
        at += size
    return found
