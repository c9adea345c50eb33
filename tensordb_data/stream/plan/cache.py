"""PlanCache: plans on local disk. A plan is read from the database once, and then mapped by every process of the host.

The name of a file is a digest of all that decides its content: query, fields, schemas, and state of the data. So a file
is never stale. It is written under another name and renamed, so it is never half-written. Its checksum is verified when
it is opened. If it is damaged, the plan is read from the database again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensordb_data.common.system.mmap import map_open_file
from tensordb_data.common.system.private import ForeignFileError, make_folder, open_own
from tensordb_data.errors import CacheWarning
from tensordb_data.stream.plan.format import DAMAGED, pack_plan, unpack_plan
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.state import Versions

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

log = logging.getLogger("tensordb_data.stream")

_NAME = re.compile(r"[0-9a-f]{32}\.plan")
_CAP = 2 << 30
_KEPT = 64 << 20
_POINTER, _POINTERS = 1 << 20, 1000  # bytes of a file that names the newest plan of a query; and how many are kept
_MAPPED = 1 << 20
"""A file of so many bytes or more is mapped, so that the processes of a host share its memory."""


class PlanCache:
    """The plan files of one folder, of at most `cap` bytes. The least recently used ones are removed first.

    If there is no room, or no right to write, plans stay in memory.
    """

    def __init__(self, folder: Path, cap: int = _CAP) -> None:
        self._folder, self._cap = folder, cap

    def open(self, key: str, layout: FieldLayout) -> Plan | None:
        """Open the plan that is stored under `key`; None if there is none."""
        path = self._folder / f"{key}.plan"
        try:
            fd = open_own(path)
            try:
                size = os.fstat(fd).st_size
                # Only this user may cut it short, and no process of ours does so while it has its name.
                content = map_open_file(fd, size, path) if size >= _MAPPED else _read(fd, size)
            finally:
                os.close(fd)
            with contextlib.suppress(OSError):
                os.utime(path)  # marks it as used, for `_evict`
            return unpack_plan(content, layout)
        except FileNotFoundError:
            return None
        except ForeignFileError as error:
            warnings.warn(f"{error}; the plan is read from the database", CacheWarning, stacklevel=2)
            return None
        except (OSError, *DAMAGED) as error:
            log.warning("plan file %s is damaged and will be written anew: %s", path, str(error))
            return None

    def store(self, key: PlanKey, plan: Plan) -> None:
        """Store a plan under its key, if there is room."""
        try:
            make_folder(self._folder)
            self._write(f"{key.exact}.plan", pack_plan(plan))
            self._write(f"{key.query}.newest", [json.dumps(dict(plan.versions)).encode()])
            self._evict(keep=key.exact)
        except OSError as error:
            log.warning("cannot keep a plan in %s: %s", self._folder, str(error))

    def newest(self, key: PlanKey) -> Versions | None:
        """The versions of the newest plan that was stored for the query of a key; None if none is known."""
        try:
            with open(open_own(self._folder / f"{key.query}.newest"), "rb") as file:
                found = json.loads(file.read(_POINTER))
            return {str(dataset): (int(pair[0]), int(pair[1])) for dataset, pair in found.items()}
        except (OSError, ForeignFileError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None  # then the plan is read as a whole

    def _write(self, file_name: str, content: Iterable[Any]) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix="new-", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(content)
            os.replace(temporary, self._folder / file_name)
        except BaseException:
            os.unlink(temporary)
            raise

    def _evict(self, keep: str) -> None:
        found = []
        pointers = []
        for path in self._folder.iterdir():
            if path.suffix == ".newest":
                with contextlib.suppress(FileNotFoundError):
                    pointers.append((path.stat().st_mtime_ns, path))
            if _NAME.fullmatch(path.name) and path.stem != keep:
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        room = self._cap - (self._folder / f"{keep}.plan").stat().st_size
        for _, size, path in sorted(found, reverse=True):
            room -= size
            if room < 0:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        for _, path in sorted(pointers)[:-_POINTERS]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


class NewestPlan:
    """The plan that was used last through a connection, for its next stream.

    What is known of it stays known: which of its blobs were compared with their checksums.
    """

    def __init__(self) -> None:
        self._known: tuple[PlanKey, Plan] | None = None

    def get(self, key: PlanKey) -> Plan | None:
        """The plan, if it is the one of this key."""
        known = self._known
        return known[1] if known is not None and known[0] == key else None

    def of_query(self, key: PlanKey) -> Plan | None:
        """The plan, if it is of the query of this key, whatever its versions are."""
        known = self._known
        return known[1] if known is not None and known[0].query == key.query else None

    def note(self, key: PlanKey, plan: Plan) -> None:
        """Keep a plan in place of the one before. One that takes much memory is kept only where it is mapped."""
        if plan.table.nbytes <= _KEPT or not plan.table.all_ids.flags.owndata:
            self._known = (key, plan)


def _read(fd: int, size: int) -> NDArray[np.uint8]:
    with open(fd, "rb", closefd=False) as file:
        return np.frombuffer(file.read(size), np.uint8)


class PlanKey(NamedTuple):
    """The key of a plan: digests, in 32 hexadecimal digits, of all that decides its content."""

    query: str
    """Of all but the versions of the data."""
    exact: str
    """Of all."""


def plan_key(
    bound_query: BoundQuery, layout: FieldLayout, versions: Versions, born: Mapping[str, str] | None = None
) -> PlanKey:
    """The key of a plan.

    Args:
        bound_query: The query.
        layout: The fields.
        versions: The state of the data.
        born: When the datasets were made. It is looked up if it is not given.
    """
    warehouse = bound_query.warehouse
    if born is None:
        docs = warehouse.index["datasets"].find(warehouse.datasets.filter(sorted(versions)), {"created": 1})
        born = {doc["_id"]["d"]: str(doc.get("created")) for doc in docs}
    content = {
        "project": warehouse.project,
        "query": bound_query.query.replace(fields=None).fingerprint,
        "fields": layout.fields,
        "schemas": {name: schema.to_doc() for name, schema in sorted(layout.schemas.items())},
        "born": sorted(born.items()),
    }
    query = _digest(content)
    return PlanKey(query, _digest([query, sorted(versions.items())]))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
