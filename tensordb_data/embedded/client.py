"""A client of a folder's server, which it joins and leaves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ServerSelectionTimeoutError

from tensordb_data.embedded.read_only import join_copy
from tensordb_data.embedded.session import Session, join
from tensordb_data.errors import EmbeddedServerError

PATIENCE = 60.0  # seconds that an operation waits for a server that is being started again
LOOK_MS = 2000  # how often it looks whether that has failed


class FolderClient(MongoClient[dict[str, Any]]):
    """A `pymongo.MongoClient` of the embedded server of a folder; `close` leaves the server as well.

    An operation waits while a server that died is started again. When that fails, it raises `EmbeddedServerError` with
    the reason.

    Args:
        folder: The warehouse folder.
        read_only: Whether nothing in the folder is to be changed.
        **options: Those of `pymongo.MongoClient`.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, **options: Any) -> None:
        self._closing = False
        session = join_copy(folder) if read_only else join(folder)
        self._tensordb_session = session
        try:
            super().__init__(session.uri, serverSelectionTimeoutMS=LOOK_MS, **options)
        except BaseException:
            session.close()
            raise

    @property
    def session(self) -> Session:
        """The share in the server that this client holds."""
        return self._tensordb_session

    def close(self) -> None:
        """Close the connections and leave the server. One that is away is no error here."""
        self._closing = True
        try:
            super().close()
        finally:
            self._tensordb_session.close()

    def _select_server(self, *args: Any, **kwargs: Any) -> Any:
        # Every operation of pymongo passes here. There is no public way to tell it why a server is away; should the
        # method go, what is lost is the reason in the error and the length of the wait.
        if self._closing:  # the server is told that sessions end; pymongo ignores its own error if it cannot be
            return super()._select_server(*args, **kwargs)
        started = time.monotonic()
        while True:
            attempt = time.monotonic()
            try:
                return super()._select_server(*args, **kwargs)
            except ServerSelectionTimeoutError:
                if (reason := self._tensordb_session.error) is not None:
                    raise EmbeddedServerError(str(reason)) from None
                now = time.monotonic()
                if now - started > PATIENCE or now - attempt < LOOK_MS / 2000:  # the latter: a deadline of the caller
                    raise
