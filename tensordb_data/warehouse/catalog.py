"""The document that describes a warehouse in its database, with format and blob roots."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError, OperationFailure

from tensordb_data.common.folder_names import folder_fault, is_wrapped
from tensordb_data.common.system.file_urls import file_path
from tensordb_data.errors import ConnectError, NotFoundError, ReadOnlyError, StorageError
from tensordb_data.mongo.errors import UNAUTHORIZED
from tensordb_data.warehouse.upgrade import upgrade

FORMAT = 2
"""The format that is written. See docs/format.md."""
FORMATS = (1, 2)
"""The formats that this version reads."""
RESTORING = "restoring"
"""In place of a format, while a backup is brought back."""


def prepare(mongo: Any, default_blobs: str, blobs: str | None) -> list[dict[str, Any]]:
    """Make the database a warehouse, or check that it is one, and upgrade it from an older format.

    Args:
        mongo: The database.
        default_blobs: The first blob root of a new warehouse when `blobs` is None.
        blobs: The blob root for new segments, registered when it is new.

    Returns:
        The blob roots, `{id, url}` each, with the one for new segments first.

    Raises:
        ConnectError: The warehouse was written by a newer version.
    """
    try:
        doc = _warehouse(mongo, default_blobs if blobs is None else blobs)
        if doc["format"] != FORMAT:
            upgrade(mongo)
        chosen = doc["roots"][0] if blobs is None else _registered(mongo, doc, blobs)
    except OperationFailure as error:
        # A reader without the right to write can still use a warehouse that is ready.
        found = mongo["warehouse"].find_one({"_id": "warehouse"}) if error.code == UNAUTHORIZED else None
        if found is None or blobs is not None:
            raise
        doc = _checked(found)
        chosen = doc["roots"][0]
    return [chosen, *(root for root in doc["roots"] if root["id"] != chosen["id"])]


def look(mongo: Any, address: str, blobs: str | None) -> list[dict[str, Any]]:
    """Look at a warehouse, and make nothing.

    Returns:
        As `prepare`.

    Raises:
        NotFoundError: The database has no warehouse.
        ReadOnlyError: `blobs` is not a root of it.
        ConnectError: As for `prepare`.
    """
    found = mongo["warehouse"].find_one({"_id": "warehouse"})
    if found is None:
        raise NotFoundError(
            f"there is no warehouse in the database {mongo.name!r} of {address}, and with read_only=True none is made:"
            " check the address and db_name=, or open it once without"
        )
    roots: list[dict[str, Any]] = [dict(root) for root in _checked(found)["roots"]]
    if blobs is not None and blobs not in [root["url"] for root in roots]:
        raise ReadOnlyError(f"blobs={blobs!r} is not known to this warehouse, and with read_only=True it is not noted:"
                            f" leave blobs= out; there are {', '.join(root['url'] for root in roots)}")  # fmt: skip
    return sorted(roots, key=lambda root: root["url"] != blobs) if blobs is not None else roots


def _warehouse(mongo: Any, url: str) -> dict[str, Any]:
    new = {"format": FORMAT, "roots": [{"id": 0, "url": _named(url)}]}
    found = mongo["warehouse"].find_one({"_id": "warehouse"})
    if found is None:
        with contextlib.suppress(DuplicateKeyError):  # someone else was first
            mongo["warehouse"].update_one({"_id": "warehouse"}, {"$setOnInsert": new}, upsert=True)
        found = mongo["warehouse"].find_one({"_id": "warehouse"})
    return _checked(found)


def _checked(doc: Mapping[str, Any]) -> dict[str, Any]:
    if doc.get("format") == RESTORING:
        raise ConnectError("a backup is being restored here, or its restore was stopped: make it again with `tensordb "
                           "backup restore`, or drop what is here")  # fmt: skip
    if doc.get("format") not in FORMATS:
        raise ConnectError(
            f"this warehouse has format {doc.get('format')!r}, this version of tensordb-data reads formats "
            f"{' and '.join(map(str, FORMATS))}: upgrade tensordb-data, or use another database"
        )
    return dict(doc)


def _registered(mongo: Any, doc: dict[str, Any], url: str) -> dict[str, Any]:
    while True:
        for root in doc["roots"]:
            if root["url"] == url or (url == "memory://" and root["url"].startswith("memory://")):
                return dict(root)
        root = {"id": 1 + max(root["id"] for root in doc["roots"]), "url": _named(url)}
        mongo["warehouse"].update_one(
            {"_id": "warehouse", "roots": {"$size": len(doc["roots"])}}, {"$push": {"roots": root}}
        )
        doc.update(mongo["warehouse"].find_one({"_id": "warehouse"}))


def _named(url: str) -> str:
    """A `memory://` of its own for each warehouse that asks for an anonymous one."""
    return f"memory://{ObjectId()}" if url == "memory://" else url


def resolve_blobs(url: str | Path, folder: Path | None, option: str = "blobs=") -> str:
    """A place for blobs in the form in which it is recorded; `option` is how the user gave it.

    A path is taken from the working directory, as paths are; inside the warehouse's folder it is recorded
    relative to it, so that the folder can move.

    Raises:
        StorageError: It is not a URL that a blob store can have, or holds credentials.
    """
    if not isinstance(url, (str, Path)):
        raise StorageError(f"{option} is a folder or a URL such as s3://bucket/prefix; found {url!r}")
    text = str(url)
    if not text:
        raise StorageError(f"{option} is a folder or a URL such as s3://bucket/prefix; found an empty string")
    scheme, separator, rest = text.partition("://")
    if (not separator or is_wrapped(text)) and (fault := folder_fault(text)) is not None:
        raise StorageError(f"{option} {fault}; expected a folder or a URL such as s3://bucket/prefix")
    if separator and scheme != "file":
        if "@" in rest.split("/")[0] or "?" in rest:
            raise StorageError(f"{option}: a {scheme}:// URL that is recorded must hold no credentials or options; "
                               "give them in the environment (AWS_ACCESS_KEY_ID, …)")  # fmt: skip
        if scheme not in ("s3", "gs", "az", "memory", "gridfs"):
            raise StorageError(f"{option}: no store for {scheme}://; there are file, s3, gs, az, memory and gridfs")
        if scheme in ("s3", "gs", "az") and not rest.strip("/"):
            raise StorageError(f"{option}: {text} names no bucket; write {scheme}://bucket/prefix")
        bucket = rest.strip("/")
        if scheme == "gridfs" and ("$" in bucket or ".." in bucket or bucket.startswith(".") or bucket.endswith(".")):
            raise StorageError(f"{option}: {text!r} names no collection that MongoDB can have: no $, and no dots in a "
                               "row or at an end")  # fmt: skip
        return text.rstrip("/") if rest.strip("/") else f"{scheme}://"
    path = file_path(text) if separator else Path(text).expanduser()
    path = path.resolve()
    if folder is not None and path.is_relative_to(folder.resolve()):
        return f"./{path.relative_to(folder.resolve()).as_posix()}"
    return path.as_uri()
