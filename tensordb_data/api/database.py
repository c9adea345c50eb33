"""TensorDB: a connection to one project of a warehouse, and its five collections."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.api.architectures import Architectures
from tensordb_data.api.collection import Collection
from tensordb_data.api.data.samples import Data
from tensordb_data.api.frozen.selection import FrozenSelection
from tensordb_data.api.housekeeping import Housekeeping
from tensordb_data.api.jobs import Jobs
from tensordb_data.api.logs import Logs
from tensordb_data.api.overview import Overview
from tensordb_data.api.params import Params
from tensordb_data.api.runs import RunSelection
from tensordb_data.api.search import Hit, search
from tensordb_data.api.selection import Selection
from tensordb_data.common.options import suggesting
from tensordb_data.errors import QueryError, StorageError
from tensordb_data.export.portable import PortableAddress, check_alone
from tensordb_data.feedback.buffer import feedback_buffer
from tensordb_data.mongo.address import HostOptions, parse
from tensordb_data.query.query import Filter, Query, Sort
from tensordb_data.search.index import search_index
from tensordb_data.search.reindex import selected_groups
from tensordb_data.warehouse.bound_query import BoundQuery
from tensordb_data.warehouse.context import Warehouse
from tensordb_data.warehouse.roots import Roots

if TYPE_CHECKING:
    from pymongo.database import Database
    from typing_extensions import Unpack

    from tensordb_data.api.window import Ui


class TensorDB(Overview, Housekeeping):
    """A warehouse: five collections of one project, in MongoDB, with their blobs in files or an object store.

    Args:
        address: A folder, for which a MongoDB server is started or joined; or a `mongodb://` or `mongodb+srv://`
            address of a replica set (of a sharded cluster: not tried), whose path names the database; or the
            `address` of another TensorDB.
        project: The project. Every entity belongs to one, and projects do not see each other.
        blobs: Where new blobs go: a folder, `file://`, `s3://`, `gs://`, `az://`, `memory://` or `gridfs://`. The
            warehouse records it. With None the recorded place is used; a new warehouse uses the folder `blobs` in
            its own folder, or `gridfs://` on a server.
        roots: Places of older blobs that may be read, as `blobs` was given then: a list. A place that only the database
            names is refused. Or the folders of files that samples point into, by the names of their roots:
            `{"photos": "/mnt/photos"}`, with a path or a `Root`; they are never written. `$TENSORDB_ROOTS` names more
            of both, with commas between them: `s3://old/blobs,photos=/mnt/photos`. `tensordb roots add` opens a place
            for all that this user does.
        cache: A folder on a local disk. It keeps blobs that were read from S3, GCS, Azure and GridFS, and plans of
            streams. Processes share it, and warehouses may share it. By default `cache` in the warehouse's own
            folder; for a server, a folder in `$XDG_CACHE_HOME` or `~/.cache`; with `client=`, none. Its files may be
            deleted at any time.
        cache_bytes: How many bytes of blobs the cache may hold, a number or a size such as `"200GB"`. The least
            recently used segments are removed first. By default a tenth of the disk's free space, at most 50 GB.
        client: A `pymongo.MongoClient`, or a `mongomock.MongoClient` for unit tests, in place of an address. The
            caller closes it.
        read_only: Whether this connection only reads. It makes, changes and cleans nothing, and what would write raises
            `ReadOnlyError`. A server's user needs no more than the role `read`. A folder may lie on a read-only disk:
            then its index is copied into a folder in `$XDG_CACHE_HOME` or `~/.cache`, and kept there.
        credentials: With the `address` of another TensorDB: the whole address of its server, with user and password, or
            `"env:NAME"` for a variable that holds it. By default `$TENSORDB`, if a login is needed.
        ip: Host of a server, in place of an address. `TensorDB.from_host` takes it and what follows, too.
        port: Its port.
        db_name: The database, `"tensordb"` when neither this nor the address names one.
        user_name: User, for `ip=`.
        password: Password, for `ip=`.
        studyID: Another name of `project`.

    Raises:
        ConnectError: The server cannot be reached, refused the credentials, or is of a kind that cannot be used.
        EmbeddedServerError: The server of the folder cannot be found or started.
        StorageError: `blobs` or one of `roots` is not a place for blobs, or new blobs would go to a place that only the
            database names.
        NotFoundError: With `read_only`, there is no warehouse.
    """

    @suggesting(HostOptions)
    def __init__(
        self,
        address: str | Path | PortableAddress | None = None,
        *,
        project: str | None = None,
        blobs: str | Path | None = None,
        roots: Roots | None = None,
        cache: str | Path | None = None,
        cache_bytes: int | str | None = None,
        client: Any = None,
        read_only: bool = False,
        credentials: str | None = None,
        **host: Unpack[HostOptions],
    ) -> None:
        if not isinstance(read_only, bool):
            raise QueryError(f"read_only= is True or False; found {read_only!r:.200}")
        self._collections: dict[str, Collection[Any]] = {}
        if isinstance(address, PortableAddress):
            check_alone(blobs=blobs, client=client, **host)
            self._warehouse = address.connect(
                credentials, project=project, roots=roots, cache=cache, cache_bytes=cache_bytes, read_only=read_only
            )
            return
        if credentials is not None:
            raise QueryError("credentials= goes with db.address of another TensorDB; otherwise the URI has the login")
        where = parse(address, client=client, project=project, **host)
        where = dataclasses.replace(where, read_only=read_only)
        self._warehouse = Warehouse.open(where, blobs=blobs, roots=roots, cache=cache, cache_bytes=cache_bytes)

    @classmethod
    @suggesting()
    def from_host(
        cls,
        host: str = "localhost",
        port: int = 27017,
        *,
        db_name: str | None = None,
        user_name: str | None = None,
        password: str | None = None,
        project: str | None = None,
        studyID: str | int | None = None,
        blobs: str | Path | None = None,
        roots: Roots | None = None,
        cache: str | Path | None = None,
        cache_bytes: int | str | None = None,
        read_only: bool = False,
    ) -> TensorDB:
        """The warehouse on a server that is named by host and port: `TensorDB.from_host("db1", user_name="me", ...)`.

        Args:
            host: Name or number of the server.
            port: Its port.
            db_name: The database; by default `"tensordb"`.
            user_name: User of the server.
            password: Password of the user.
            project: As for `TensorDB`.
            studyID: Another name of `project`.
            blobs: As for `TensorDB`.
            roots: As for `TensorDB`.
            cache: As for `TensorDB`.
            cache_bytes: As for `TensorDB`.
            read_only: As for `TensorDB`.

        Raises:
            ConnectError: As for `TensorDB`.
            StorageError: As for `TensorDB`.
        """
        return cls(
            ip=host, port=port, db_name=db_name, user_name=user_name, password=password, project=project,
            studyID=studyID, blobs=blobs, roots=roots, cache=cache, cache_bytes=cache_bytes, read_only=read_only,
        )  # fmt: skip

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

    def runs(self, filter: Filter | None = None, *, sort: Sort | None = None, limit: int | None = None) -> RunSelection:
        """Select runs; see `Run` for their fields. `last` and `best` are read from the rows each time.

        Args:
            filter: `{"config.lr": {"$lt": 0.1}, "status": "ended"}`; None for all runs. One on `name` saves time.
            sort: `[("best.val_acc", -1)]`; None for the order of names. What is missing or NaN comes last.
            limit: The most runs to select; None for no limit.
        """
        return RunSelection(self, filter, sort, limit)

    @property
    def database(self) -> Database[Any]:
        """The `pymongo.database.Database` of this warehouse, connected by this process, for what is not offered here.

        Its collections hold the documents of all projects, as they are stored. After changing samples there, call
        `touch`.
        """
        return self._warehouse.index.database

    def select(self, query: Query) -> Selection[Any]:
        """The Selection of a stored query.

        Raises:
            QueryError: `query` is not a Query; one in JSON is read by `Query.from_json`.
        """
        if not isinstance(query, Query):
            raise QueryError(
                f"select takes a Query (sel.query, or Query.from_json(text)); found {type(query).__name__}"
            )
        return Selection(self, query) if query.frozen is None else FrozenSelection(self, query)

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
        db = self
        if project is not None:
            if not isinstance(project, str) or not project:
                raise QueryError(f"project= is the name of a project; found {project!r}")
            db = TensorDB.over(self._warehouse.in_project(project))
        return search(db, words, kind, limit)

    def touch(self, dataset: str) -> None:
        """Tell the warehouse that another tool has edited samples of a dataset, so that streams and searches see it."""
        self._warehouse.datasets.mark_changed([dataset], deleted=True)
        selected = BoundQuery(self._warehouse, Query("data", {"dataset": dataset}))
        search_index(self._warehouse, "data").add_groups(selected_groups(selected), {})

    def ui(self, port: int = 0, *, write: bool = False, open: bool = True, hosts: Sequence[str] = ()) -> Ui:
        """Serve the page that shows this warehouse, from a process of its own, for a notebook or a script.

        `tensordb ui` is the same on the command line.

        Args:
            port: The port of the loopback interface; 0 for a free one.
            write: Whether the page may change labels and tags, cancel jobs and retry them.
            open: Whether to open a browser, if this machine has a screen.
            hosts: Names by which browsers may call the page, beside those of this machine: that of a proxy of
                Jupyter, say. `$JUPYTERHUB_PUBLIC_URL` names it by itself.

        Returns:
            The page: `url`, `close()`. A notebook shows a link.

        Raises:
            MissingExtraError: starlette, uvicorn or jinja2 is not installed.
            ConnectError: The port is taken, or the warehouse cannot be opened by another process.
            UnsupportedError: This TensorDB was made with `client=`.
        """
        from tensordb_data.api.window import open_window

        return open_window(self._warehouse, port, write, open, hosts)

    def close(self) -> None:
        """Store what is pending of feedback, and disconnect from server and blob stores. A second call does nothing.

        Raises:
            StorageError: The server did not take the feedback; it is lost. All is closed.
        """
        try:
            if not self._warehouse.closed:
                feedback_buffer(self._warehouse).close()
        finally:
            self._warehouse.close()

    def __enter__(self) -> TensorDB:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except StorageError as lost:
            if error is None:
                raise
            warnings.warn(str(lost), stacklevel=2)  # it must not hide what went wrong first

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
