"""A stand-in for a mongod of a release that the tests do not have. It records what it is asked, and stores nothing.

    stand_in.py --version
    stand_in.py --dbpath ... --bind_ip SOCKET ...

The release is that of its name: `mongod-7.0.12`. What it is asked goes to `asked.jsonl` beside it, a line each. The
feature compatibility version that it was told last is kept in `fcv` there, for the next of its kind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import bson

HERE = Path(sys.argv[0]).absolute()
VERSION = HERE.name.rsplit("-", 1)[1]
HELLO = {"isWritablePrimary": True, "ismaster": True, "setName": "tensordb", "maxWireVersion": 21, "minWireVersion": 0,
         "maxBsonObjectSize": 16777216, "maxMessageSizeBytes": 48000000, "maxWriteBatchSize": 100000,
         "logicalSessionTimeoutMinutes": 30, "readOnly": False, "hosts": ["x"], "me": "x", "ok": 1.0}  # fmt: skip


def note(**what: Any) -> None:
    with open(HERE.with_name("asked.jsonl"), "a") as file:
        file.write(json.dumps({"version": VERSION, **what}) + "\n")


def answer(command: dict[str, Any]) -> dict[str, Any]:
    name = next(iter(command))
    known = HERE.with_name("fcv")
    if name in ("hello", "ismaster", "isMaster"):
        return HELLO
    if name == "setFeatureCompatibilityVersion":
        note(setFeatureCompatibilityVersion=command[name], confirm=command.get("confirm"))
        known.write_text(command[name])
    if name == "getParameter":
        return {"featureCompatibilityVersion": {"version": known.read_text()}, "ok": 1.0}
    return {"ok": 1.0}


def serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as stream:
        while len(head := stream.read(16)) == 16:
            length, request, _, opcode = struct.unpack("<iiii", head)
            body = stream.read(length - 16)
            if opcode == 2004:  # OP_QUERY, in which drivers say hello
                at = body.index(b"\0", 4) + 9
                reply = bson.encode(answer(bson.decode(body[at : at + struct.unpack_from("<i", body, at)[0]])))
                rest = struct.pack("<iqii", 8, 0, 0, 1) + reply
                connection.sendall(struct.pack("<iiii", 16 + len(rest), 1, request, 1) + rest)
            else:  # OP_MSG
                flags = struct.unpack_from("<I", body)[0]
                reply = bson.encode(answer(bson.decode(body[5 : 5 + struct.unpack_from("<i", body, 5)[0]])))
                if not flags & 2:
                    rest = struct.pack("<I", 0) + b"\0" + reply
                    connection.sendall(struct.pack("<iiii", 16 + len(rest), 1, request, 2013) + rest)


def main() -> None:
    if "--version" in sys.argv:
        print(f"db version v{VERSION}")
        return
    note(start=True)
    path = sys.argv[sys.argv.index("--bind_ip") + 1]
    signal.signal(signal.SIGTERM, lambda *_: (note(stop=True), os.unlink(path), os._exit(0)))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print('{"id":23016}', flush=True)
        print('{"id":21331}', flush=True)
        while True:
            threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
