"""TensorDB: a connection to one project of a warehouse, and its five collections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.api.architectures import Architectures
from tensordb_data.api.collection import Collection
from tensordb_data.api.jobs import Jobs
from tensordb_data.api.logs import Logs
from tensordb_data.api.params import Params
from tensordb_data.api.samples import Data
from tensordb_data.api.search import Hit, search
from tensordb_data.api.selection import Selection
from tensordb_data.errors import QueryError
from tensordb_data.mongo.address import parse
from tensordb_data.query.query import Query
from tensordb_data.search.index import search_index
from tensordb_data.search.reindex import groups_of
from tensordb_data.warehouse.bound_query import BoundQuery
from tensordb_data.warehouse.context import Warehouse

if TYPE_CHECKING:
    from pymongo.database import Database

    from tensordb_data.housekeeping.fsck import Checked
    from tensordb_data.housekeeping.gc import Collected
    from tensordb_data.housekeeping.rebuild import Rebuilt


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
        self._warehouse = Warehouse.open(where, blobs=blobs, cache=cache, cache_bytes=cache_bytes)
        self._collections: dict[str, Collection[Any]] = {}

    @classmethod
    def over(cls, warehouse: Warehouse) -> TensorDB:
        """The facade of a warehouse that is open already."""
        db = cls.__new__(cls)
        db._warehouse, db._collections = warehouse, {}
        return db

    @property
    def project(self) -> str:
        """The project that scopes every entity."""
        return self._warehouse.project

    @property
    def cache(self) -> Path | None:
        """The folder that was given as `cache=`."""
        return self._warehouse.cache

    @property
    def cache_bytes(self) -> int | None:
        """How many bytes were given as `cache_bytes=`."""
        return self._warehouse.cache_bytes

    @property
    def database(self) -> Database[Any]:
        """The pymongo `Database` of the index, for what is not offered here. Say `touch` after edits of samples."""
        return self._warehouse.index.database

    @property
    def warehouse(self) -> Warehouse:
        """The context that the rest of the package works with: index, blobs, datasets. Not a stable interface."""
        return self._warehouse

    @property
    def data(self) -> Data:
        """Samples, in datasets."""
        return self.collection("data")  # type: ignore[return-value]

    @property
    def architectures(self) -> Architectures:
        """Model architectures."""
        return self.collection("architectures")  # type: ignore[return-value]

    @property
    def params(self) -> Params:
        """Saved parameters."""
        return self.collection("params")  # type: ignore[return-value]

    @property
    def jobs(self) -> Jobs:
        """Jobs."""
        return self.collection("jobs")  # type: ignore[return-value]

    @property
    def logs(self) -> Logs:
        """Logs of runs."""
        return self.collection("logs")  # type: ignore[return-value]

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
        db = self
        if project is not None:
            if not isinstance(project, str) or not project:
                raise QueryError(f"project= is the name of a project; found {project!r}")
            db = TensorDB.over(self._warehouse.in_project(project))
        return search(db, words, kind, limit)

    def touch(self, dataset: str) -> None:
        """Say that a dataset's index was edited by other tools, so that streams, plans and searches look again."""
        self._warehouse.datasets.mark_changed([dataset], deleted=True)
        selected = BoundQuery(self._warehouse, Query("data", {"dataset": dataset}))
        search_index(self._warehouse, "data").add_groups(groups_of(selected), {})

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

        return collect(self._warehouse, grace, dry_run, progress)

    def fsck(self, *, progress: Callable[[str, int, int], None] | None = None) -> Checked:
        """Verify that every reference leads to bytes, and that all bytes match their checksums, of all projects.

        It reads all bytes, changes nothing, and may run at any time.

        Args:
            progress: Called with what is looked at, how many of it are done, and of how many.

        Returns:
            What was verified, and the findings: none, if everything is as it should be.
        """
        from tensordb_data.housekeeping.fsck import check

        return check(self._warehouse, progress)

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

        return rebuild(self._warehouse, progress)

    def close(self) -> None:
        """Let go of the server and the blobs. Calling it twice does nothing."""
        self._warehouse.close()

    def __enter__(self) -> TensorDB:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorDB):
            return NotImplemented
        return self._warehouse == other._warehouse

    def __hash__(self) -> int:
        return hash(self._warehouse)

    def __repr__(self) -> str:
        return str(self._warehouse)

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorDB.over, (self._warehouse,)

    def collection(self, name: str) -> Collection[Any]:
        """One of the five collections, by its name."""
        found = self._collections.get(name)
        if found is None:
            found = self._collections[name] = _COLLECTIONS[name](self)
        return found


_COLLECTIONS: dict[str, Callable[[TensorDB], Collection[Any]]] = {
    "data": Data, "architectures": Architectures, "params": Params, "jobs": Jobs, "logs": Logs,
}  # fmt: skip
