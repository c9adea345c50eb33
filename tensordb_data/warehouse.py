"""TensorDB: a connection to one project of a warehouse, and its five collections."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pymongo.read_concern import ReadConcern

from tensordb_data import catalog
from tensordb_data.abandoned import write_patiently
from tensordb_data.address import parse
from tensordb_data.connection import Connections
from tensordb_data.errors import QueryError, UnsupportedError
from tensordb_data.query import Query
from tensordb_data.records.architectures import Architectures
from tensordb_data.records.base import Collection
from tensordb_data.records.data import Data
from tensordb_data.records.jobs import Jobs
from tensordb_data.records.schema import Schema
from tensordb_data.selection import Selection
from tensordb_data.sizes import parse_size

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession
    from pymongo.database import Database

    from tensordb_data.blobs.reader import BlobReader
    from tensordb_data.blobs.store import Store
    from tensordb_data.housekeeping.fsck import Checked
    from tensordb_data.housekeeping.gc import Collected
    from tensordb_data.housekeeping.rebuild import Rebuilt
    from tensordb_data.records.logs import Logs
    from tensordb_data.records.params import Params
    from tensordb_data.search.find import Hit

T = TypeVar("T")

class TensorDB:
    """A warehouse: five collections of one project, in MongoDB, with their blobs in files or an object store.

    Args:
        address: A folder, for which a MongoDB server is started or joined; or a `mongodb://` or `mongodb+srv://`
            address of a replica set or sharded cluster, whose path names the database.
        project: Scopes every entity; projects do not see each other.
        blobs: Where new blobs go: a folder, `file://`, `s3://`, `gs://`, `az://`, `memory://` or `gridfs://`. It is
            recorded in the warehouse, and the recorded one is used when this is None. A new warehouse begins with
            a folder in its own, or with `gridfs://` on a server.
        cache: A folder on a local disk, where blobs of S3, GCS, Azure and GridFS are kept once they were read, and
            plans of streams. Processes share it, and so may warehouses. By default `cache` in the warehouse's own
            folder, or a folder of the user's (in `$XDG_CACHE_HOME` or `~/.cache`) for one on a server; none with
            `client=`. Any of it may be deleted at any time.
        cache_bytes: How many bytes of blobs it may hold, a number or a size such as `"200GB"`; the least recently
            used segments go first. By default a tenth of the disk's free space, at most 50 GB.
        client: A `pymongo.MongoClient`, or a `mongomock.MongoClient` for unit tests, in place of an address. Closing
            it stays with the caller.
        ip: Host of a server, in place of an address.
        port: Its port.
        db_name: The database, `"tensordb"` when neither this nor the address names one.
        user_name: User, for `ip=`.
        password: Password, for `ip=`.
        studyID: Another name of `project`.

    Raises:
        ConnectError: The server cannot be reached, refused the credentials, or is of a kind that cannot be used.
        EmbeddedServerError: The server of the folder cannot be found or started.
        StorageError: `blobs` is not a place for blobs.
    """

    def __init__(
        self,
        address: str | Path | None = None,
        *,
        project: str | None = None,
        blobs: str | Path | None = None,
        cache: str | Path | None = None,
        cache_bytes: int | str | None = None,
        client: Any = None,
        ip: str | None = None,
        port: int | None = None,
        db_name: str | None = None,
        user_name: str | None = None,
        password: str | None = None,
        studyID: str | int | None = None,
    ) -> None:
        where = parse(
            address, ip=ip, port=port, db_name=db_name, user_name=user_name, password=password, studyID=studyID,
            client=client, project=project,
        )  # fmt: skip
        self.project = where.project
        self.cache = None if cache is None else Path(cache).expanduser()
        self.cache_bytes = None if cache_bytes is None else parse_size(cache_bytes, "cache_bytes")
        recorded = None if blobs is None else catalog.resolve_blobs(blobs, where.folder)
        self._connections = Connections(where)
        default = "./blobs" if where.folder is not None else "gridfs://" if self._full else "memory://"
        try:
            self._roots = catalog.prepare(self._mongo(), default, recorded)
        except BaseException:
            self.close()
            raise
        self._collections: dict[str, Collection[Any]] = {}

    @property
    def data(self) -> Data:
        """Samples, in datasets."""
        return self._collection("data")  # type: ignore[return-value]

    @property
    def architectures(self) -> Architectures:
        """Model architectures."""
        return self._collection("architectures")  # type: ignore[return-value]

    @property
    def params(self) -> Params:
        """Saved parameters."""
        return self._collection("params")  # type: ignore[return-value]

    @property
    def jobs(self) -> Jobs:
        """Jobs."""
        return self._collection("jobs")  # type: ignore[return-value]

    @property
    def logs(self) -> Logs:
        """Logs of runs."""
        return self._collection("logs")  # type: ignore[return-value]

    def select(self, query: Query) -> Selection[Any]:
        """The Selection of a stored query.

        Raises:
            QueryError: `query` is not a Query; one in JSON is read by `Query.from_json`.
        """
        if not isinstance(query, Query):
            raise QueryError(
                f"select takes a Query (sel.query, or Query.from_json(text)); found {type(query).__name__}"
            )
        return Selection(self, query)

    def search(
        self, words: str, *, kind: str | Sequence[str] | None = None, project: str | None = None, limit: int = 20
    ) -> list[Hit]:
        """Find what has some words in its name, tags or texts, among all kinds of entities.

        Words are cut at everything that is neither letter nor digit, without regard to case and accents; the beginning
        of a word finds it too. Samples of one dataset with the same tags are one hit, and so are log rows of one run.

        What has more of the words comes first; then what scores higher: a word counts 3 in a name, 2 in a tag and 1 in
        a text, half where only its beginning was asked for, times the logarithm of how rare it is; then the newer.

        Args:
            words: `"chest ct 2024"`.
            kind: Only of these collections: `"data"`, `"architectures"`, `"params"`, `"jobs"`, `"logs"`.
            project: Another project of the warehouse.
            limit: At most so many hits.

        Raises:
            QueryError: An argument is malformed.
        """
        from tensordb_data.search.find import search

        return search(self, words, kind, project, limit)

    def touch(self, dataset: str) -> None:
        """Say that a dataset's index was edited by other tools, so that streams, plans and searches look again."""
        from tensordb_data.search.follow import groups_of

        self._mutated([dataset], deleted=True)
        self.data._entries.add_groups(groups_of(self.data.find({"dataset": dataset})), {})

    def gc(
        self,
        *,
        grace: float = 3600.0,
        dry_run: bool = False,
        progress: Callable[[str, int], None] | None = None,
    ) -> Collected:
        """Remove blobs that nothing refers to, of all projects. Safe at any time, beside writers, readers and savers.

        What is found unused is marked, and removed by a later call if it is unused still when `grace` has passed.

        Args:
            grace: Seconds, on the server's clock: how old what is marked must be, and how long ago it must have been
                marked to be removed. With 0, what a running `load()` of a deleted set still reads may go too.
            dry_run: Change nothing; only say what is unused.
            progress: Called with the name of what is looked at, and how many of it so far.

        Raises:
            StorageError: A blob store failed; the next call goes on.
            UnsupportedError: This is mongomock.
        """
        from tensordb_data.housekeeping.gc import collect

        return collect(self, grace, dry_run, progress)

    def fsck(self, *, progress: Callable[[str, int, int], None] | None = None) -> Checked:
        """Verify that every reference leads to bytes, and that all bytes match their checksums, of all projects.

        It reads all bytes, changes nothing, and may run at any time.

        Args:
            progress: Called with what is looked at, how many of it are done, and of how many.

        Returns:
            What was verified, and the findings: none, if everything is as it should be.
        """
        from tensordb_data.housekeeping.fsck import check

        return check(self, progress)

    def rebuild(self, *, progress: Callable[[str, int, int], None] | None = None) -> Rebuilt:
        """Write the samples and parameter sets of a project whose index is lost into this one again, from its blobs.

        For that, open a new database with the `blobs=` of the old one. It can be stopped and called again.

        Args:
            progress: Called with what is read, how many of it are done, and of how many.

        Returns:
            What came back, which objects could not be used, and what a blob store does not tell.

        Raises:
            UnsupportedError: The project has samples or parameter sets: its index is not lost.
        """
        from tensordb_data.housekeeping.rebuild import rebuild

        return rebuild(self, progress)

    def close(self) -> None:
        """Let go of the server and the blobs. Calling it twice does nothing."""
        self._connections.close()

    def __enter__(self) -> TensorDB:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorDB):
            return NotImplemented
        return self._connections.address == other._connections.address

    def __hash__(self) -> int:
        address = self._connections.address
        return hash((address.folder, address.uri, address.database, address.project))

    def __repr__(self) -> str:
        return f"TensorDB({str(self._connections.address)!r}, project={self.project!r})"

    def __getstate__(self) -> dict[str, Any]:
        address = self._connections.address
        if address.client is not None:
            raise UnsupportedError("a TensorDB made with client=... cannot go to another process; give it an address")
        keep = {name: value for name, value in vars(self).items() if name not in ("_connections", "_collections")}
        return {**keep, "address": address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._connections = Connections(state.pop("address"))
        self._collections = {}
        vars(self).update(state)

    # For the rest of the package

    @property
    def _full(self) -> bool:
        """Whether the server has sessions, change streams and raw batches."""
        return self._connections.get().full

    def _mongo(self) -> Database[Any]:
        """The database, connected by this process."""
        mongo: Database[Any] = self._connections.get().mongo
        return mongo

    def _transaction(self, fn: Callable[[ClientSession | None], T]) -> T:
        """Run `fn` in one transaction, retried on conflicts; without one on mongomock."""
        return self._connections.get().transaction(fn)

    @property
    def _cache_folder(self) -> Path | None:
        """Where this host may keep what it can read again: `cache=`, or a folder of the warehouse or the user."""
        if self.cache is not None:
            return self.cache
        address = self._connections.address
        if address.folder is not None:
            return address.folder / "cache"
        if address.client is not None:
            return None
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "tensordb" / hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def _store(self, root: int = 0) -> Store:
        return self._connections.get().store(root)

    def _reader(self) -> BlobReader:
        return self._connections.get().reader(self._cache_folder, self.cache_bytes)

    @property
    def _root(self) -> int:
        """The blob root for new segments."""
        return int(self._roots[0]["id"])

    def _collection(self, name: str) -> Collection[Any]:
        found = self._collections.get(name)
        if found is None:
            found = self._collections[name] = _KINDS[name](self)
        return found

    def _schemas(self, datasets: Sequence[str]) -> dict[str, Schema]:
        """The schemas of those datasets that exist."""
        ids = [{"p": self.project, "d": name} for name in datasets]
        docs = self._mongo()["datasets"].find({"_id": {"$in": ids}, "schema": {"$ne": None}}, {"schema": 1})
        return {doc["_id"]["d"]: Schema.from_doc(doc["schema"]) for doc in docs}

    def _data_version(self, datasets: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
        """Sequence and mutation counter of each dataset."""
        found: Mapping[str, Any] = {"_id.p": self.project}
        if datasets is not None:
            found = {"_id": {"$in": [{"p": self.project, "d": name} for name in datasets]}}
        docs = self._counters().find(found, {"seq": 1, "mut": 1})
        return {doc["_id"]["d"]: (doc["seq"], doc["mut"]) for doc in docs}

    def _counters(self, concern: str = "majority") -> Any:
        """The documents of the datasets, as a majority has them: what a deposed primary alone knows of never was."""
        found = self._mongo()["datasets"]
        return found.with_options(read_concern=ReadConcern(concern)) if self._full else found

    def _deletions(self, datasets: Sequence[str]) -> dict[str, int]:
        """What the mutation counter of each dataset was when samples of it were last deleted; 0 for never."""
        ids = [{"p": self.project, "d": name} for name in datasets]
        docs = self._mongo()["datasets"].find({"_id": {"$in": ids}}, {"del": 1})
        return {doc["_id"]["d"]: doc.get("del", 0) for doc in docs}

    def _mutated(
        self, datasets: Sequence[str] | None, deleted: bool = False, session: ClientSession | None = None
    ) -> None:
        """Count a change of existing samples in those datasets, or in every one."""
        found: Mapping[str, Any] = {"_id.p": self.project}
        if datasets is not None:
            found = {"_id": {"$in": [{"p": self.project, "d": name} for name in datasets]}}
        mongo = self._mongo()

        def count() -> None:
            if not deleted:
                mongo["datasets"].update_many(found, {"$inc": {"mut": 1}}, session=session)
            elif self._full:
                more: dict[str, Any] = {"$add": ["$mut", 1]}
                mongo["datasets"].update_many(found, [{"$set": {"mut": more, "del": more}}], session=session)
            else:  # mongomock knows no pipelines
                for doc in mongo["datasets"].find(found, {"mut": 1}):
                    mongo["datasets"].update_one(
                        {"_id": doc["_id"]}, {"$set": {"mut": doc["mut"] + 1, "del": doc["mut"] + 1}}
                    )

        if self._full and session is None:
            write_patiently(mongo.client, count)
        else:
            count()


def _params(db: TensorDB) -> Collection[Any]:
    from tensordb_data.records.params import Params

    return Params(db)


def _logs(db: TensorDB) -> Collection[Any]:
    from tensordb_data.records.logs import Logs

    return Logs(db)


_KINDS: dict[str, Callable[[TensorDB], Collection[Any]]] = {
    "data": Data, "architectures": Architectures, "params": _params, "jobs": Jobs, "logs": _logs,
}  # fmt: skip
