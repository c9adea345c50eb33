"""A server is looked at before it is trusted with a warehouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from pymongo.errors import AutoReconnect, OperationFailure

from tensordb_data import TensorDB
from tensordb_data.errors import ConnectError


@pytest.mark.parametrize("lost", ["hello", "find"])
def test_a_primary_that_is_lost_meanwhile_is_waited_for(
    mongo_uri: str, warehouse_dir: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    errors = [AutoReconnect("operation cancelled")]
    real, called = Database._command, []

    def command(self: Any, conn: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        name = command if isinstance(command, str) else next(iter(command))
        called.append(name)
        if name == lost and errors:
            raise errors.pop()
        return real(self, conn, command, *args, **kwargs)

    monkeypatch.setattr(Database, "_command", command)
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as db:
        assert db.data.find().count() == 0
    assert called.count(lost) == 2


def test_what_is_wrong_is_said_at_once(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        raise OperationFailure("Authentication failed.", 18)

    calls: list[Any] = []
    monkeypatch.setattr(Database, "_command", command)
    with pytest.raises(ConnectError, match="refused the user name or password"):
        TensorDB(mongo_uri)
    assert len(calls) == 1
