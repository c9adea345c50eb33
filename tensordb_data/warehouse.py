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
        project: The project. Every entity belongs to one, and projects do not see each other.
        blobs: Where new blobs go: a folder, `file://`, `s3://`, `gs://`, `az://`, `memory://` or `gridfs://`. The
            warehouse records it. With None the recorded place is used; a new warehouse uses the folder `blobs` in
            its own folder, or `gridfs://` on a server.
        cache: A folder on a local disk. It keeps blobs that were read from S3, GCS, Azure and GridFS, and plans of
            streams. Processes share it, and warehouses may share it. By default `cache` in the warehouse's own
            folder; for a server, a folder in `$XDG_CACHE_HOME` or `~/.cache`; with `client=`, none. Its files may be
            deleted at any time.
        cache_bytes: How many bytes of blobs the cache may hold, a number or a size such as `"200GB"`. The least
            recently used segments are removed first. By default a tenth of the disk's free space, at most 50 GB.
        client: A `pymongo.MongoClient`, or a `mongomock.MongoClient` for unit tests, in place of an address. The
            caller closes it.
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

    @property
    def database(self) -> Database[Any]:
        """The `pymongo.database.Database` of this warehouse, connected by this process, for what is not offered here.

        Its collections hold the documents of all projects, as they are stored. After changing samples there, call
        `touch`.
        """
        return self._mongo()

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
        """Find entities of all kinds that have the given words in their names, tags or texts.

        Words are sequences of letters and digits. Case and accents do not matter. The beginning of a word finds it
        too. Samples of one dataset with the same tags are one hit, and so are log rows of one run.

        Hits with more of the words come first. Among those, the higher score comes first: a word counts 3 in a name,
        2 in a tag and 1 in a text, half of that if only its beginning was given, times the logarithm of how rare it
        is. Among hits with the same score, the newer comes first.

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
        """Tell the warehouse that another tool has edited samples of a dataset, so that streams and searches see it."""
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
        """Remove blobs that nothing refers to, of all projects. Safe at any time, beside writers, readers and saves.

        A blob that is unused is marked first. A later call removes it, if it is still unused and `grace` has passed.

        Args:
            grace: Seconds, on the server's clock. Younger blobs are not marked, and a blob is removed so many seconds
                after it was marked. With 0, blobs that a running `load()` of a deleted checkpoint reads may be removed.
            dry_run: Change nothing; only report what is unused.
            progress: Called with the kind of object that is checked, and how many were checked so far.

        Raises:
            StorageError: A blob store failed; the next call goes on.
            UnsupportedError: This is mongomock.
        """
        from tensordb_data.housekeeping.gc import collect

        return collect(self, grace, dry_run, progress)

    def fsck(self, *, progress: Callable[[str, int, int], None] | None = None) -> Checked:
        """Check that every reference leads to bytes, and that all bytes match their checksums, in all projects.

        It reads all bytes, changes nothing, and may run at any time.

        Args:
            progress: Called with the kind of object that is checked, how many are done, and how many there are.

        Returns:
            What was checked, and the findings. There are none if everything is intact.
        """
        from tensordb_data.housekeeping.fsck import check

        return check(self, progress)

    def rebuild(self, *, progress: Callable[[str, int, int], None] | None = None) -> Rebuilt:
        """Write the samples and checkpoints of a project again, from its blobs, after its index was lost.

        Open a new database with the `blobs=` of the old one, and call this. It can be stopped and called again.

        Args:
            progress: Called with the kind of object that is read, how many are done, and how many there are.

        Returns:
            What was restored, which objects could not be used, and what the blob store does not tell.

        Raises:
            UnsupportedError: The project has samples or checkpoints: its index is not lost.
        """
        from tensordb_data.housekeeping.rebuild import rebuild

        return rebuild(self, progress)

    def close(self) -> None:
        """Disconnect from the server and the blob stores. A second call does nothing."""
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

    def _mutated(self, datasets: Sequence[str] | None, deleted: bool = False) -> None:
        """Count a change of existing samples in those datasets, or in every one."""
        found: Mapping[str, Any] = {"_id.p": self.project}
        if datasets is not None:
            found = {"_id": {"$in": [{"p": self.project, "d": name} for name in datasets]}}
        mongo = self._mongo()

        def count() -> None:
            if not deleted:
                mongo["datasets"].update_many(found, {"$inc": {"mut": 1}})
            elif self._full:
                more: dict[str, Any] = {"$add": ["$mut", 1]}
                mongo["datasets"].update_many(found, [{"$set": {"mut": more, "del": more}}])
            else:  # mongomock knows no pipelines
                for doc in mongo["datasets"].find(found, {"mut": 1}):
                    mongo["datasets"].update_one(
                        {"_id": doc["_id"]}, {"$set": {"mut": doc["mut"] + 1, "del": doc["mut"] + 1}}
                    )

        if self._full:
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
