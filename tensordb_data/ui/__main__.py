"""The process of `db.ui()`: it is told what to serve through a pipe, and ends when the other end is closed."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from tensordb_data.api.database import TensorDB
from tensordb_data.errors import TensorDBError
from tensordb_data.ui import make_app
from tensordb_data.ui.serve import Server, address_of, bind, calm, make_server
from tensordb_data.warehouse.context import Warehouse


def main() -> None:
    """Serve what the first line of the input asks for."""
    given = json.loads(sys.stdin.buffer.readline() or b"null")
    if given is None:
        return
    try:
        calm()
        with _opened(given) as db, bind("127.0.0.1", given["port"]) as listening:
            server = make_server(make_app(db, token=given["token"], write=given["write"], hosts=given["hosts"]))
            _answer({"address": address_of(listening, "127.0.0.1")})
            threading.Thread(target=_watch, args=(server,), daemon=True).start()
            server.run(sockets=[listening])
    except TensorDBError as error:
        _answer({"error": " ".join(str(error).split())})


def _opened(given: dict[str, Any]) -> TensorDB:
    return TensorDB.over(Warehouse.from_json({**given, "read_only": given["read_only"] or not given["write"]}))


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _watch(server: Server) -> None:
    """End the server when whoever has started it ends, or closes it."""
    # Unbuffered: a thread that waits with the lock of the buffer would abort an interpreter that ends by a signal.
    while os.read(0, 4096):
        pass
    server.should_exit = True


if __name__ == "__main__":
    main()
