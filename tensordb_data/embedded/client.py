"""A client of a folder's server, which it joins and leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymongo import MongoClient

from tensordb_data.embedded.session import Session, join


class FolderClient(MongoClient[dict[str, Any]]):
    """A `pymongo.MongoClient` of the embedded server of a folder; `close` leaves the server as well.

    Args:
        folder: The warehouse folder.
        **options: Those of `pymongo.MongoClient`.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        session = join(folder)
        self._tensordb_session = session
        try:
            super().__init__(session.uri, **options)
        except BaseException:
            session.close()
            raise

    @property
    def session(self) -> Session:
        """The share in the server that this client holds."""
        return self._tensordb_session

    def close(self) -> None:
        """Close the connections and leave the server."""
        super().close()
        self._tensordb_session.close()
