"""Readers of others, and sources that are not on this machine."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mongomock
import numpy as np
import obstore
import pytest
from obstore.store import from_url

from tensordb_data import Image, MissingExtraError, QueryError, Scalar, SchemaError, StorageError, TensorDB
from tensordb_data.ingest import Chunk, FileInfo, Given, register, registry
from tensordb_data.schema import Field


class Lines:
    """One row for each line."""

    def __init__(self, given: Given) -> None:
        self._given, self.id, self.root = given, given.files.id, given.files.root
        self.files = given.choose([".lines"])

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        return {"text": wanted.get("text") or Scalar("str")}

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for file in files:
            with self._given.open(file) as opened:
                yield Chunk({"text": [line.decode() for line in opened]}, file=file.name, done=[file])


@pytest.fixture(autouse=True)
def no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_a_registered_reader(db: TensorDB, tmp_path: Path) -> None:
    (tmp_path / "x.lines").write_text("a\nb\n")
    with pytest.raises(SchemaError, match=r"found \.lines; name the reader with format="):
        db.data.ingest(tmp_path / "x.lines", "d")
    register("lines", Lines, suffixes=[".lines"], sniff=lambda head: head.startswith(b"LINES"))
    assert db.data.ingest(tmp_path / "x.lines", "d").added == 2
    assert db.data.ingest(tmp_path, "d").unchanged == 2
    (tmp_path / "other").write_text("LINES\n")
    assert db.data.ingest(tmp_path / "other", "d").added == 1
    (tmp_path / "named.txt").write_text("x\n")
    assert db.data.ingest(tmp_path / "named.txt", "d", format="lines").added == 1
    for name in ("csv", ""):
        with pytest.raises(QueryError, match="no reader of this library has"):
            register(name, Lines)
    with pytest.raises(QueryError, match="suffixes"):
        register("x", Lines, suffixes=["x"])


def test_readers_of_distributions(db: TensorDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Entry:
        value, dist = "no.such:module", None

        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Any:
            loaded.append(self.name)
            if self.name == "broken":
                raise ImportError("no module named 'no'")
            return lambda given: Lines(given)

    entries = [Entry("broken"), Entry("csv"), Entry("lines")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    (tmp_path / "t.csv").write_text("a\n1\n")
    db.data.ingest(tmp_path / "t.csv", "csv")
    assert loaded == []  # ours comes first
    (tmp_path / "x.lines").write_text("a\n")
    assert db.data.ingest(tmp_path / "x.lines", "d", format="lines").added == 1 and loaded == ["lines"]
    with pytest.raises(
        MissingExtraError, match=r"'broken' of the package no\.such:module cannot be loaded: ImportError"
    ):
        db.data.ingest(tmp_path / "x.lines", "d", format="broken")
    with pytest.raises(SchemaError, match="did you mean 'lines'"):
        db.data.ingest(tmp_path / "x.lines", "d", format="line")


def png(value: int) -> bytes:
    return bytes(cv2.imencode(".png", np.full((4, 4, 3), value, np.uint8))[1])


def test_files_in_s3(db: TensorDB, s3: str) -> None:
    store: Any = from_url(s3, client_options={"allow_http": True})
    for i in range(3):
        obstore.put(store, f"photos/cat/{i}.png", png(i))
        obstore.put(store, f"t/{i}.csv", f"a\n{i}\n".encode())
    assert db.data.ingest(f"{s3}/photos", "photos").added == 3
    assert db.data.ingest(f"{s3}/photos/", "photos").unchanged == 3
    assert {sample["class"] for sample in db.data.find()} == {"cat"}
    assert db.data.ingest(f"{s3}/t/*.csv", "t").added == 3
    assert db.data.ingest(f"{s3}/t/{{0..1}}.csv", "two").added == 2
    obstore.put(store, "t/1.csv", b"a\n9\n")
    report = db.data.ingest(f"{s3}/t/*.csv", "t")
    assert (report.added, report.unchanged, report.missing, report.nbytes) == (1, 2, 1, 4)
    obstore.put(store, "p/x.csv", b"n,img\n1,x.png\n")  # names a file of this machine
    report = db.data.ingest(f"{s3}/p/x.csv", "p", files={"img": Image()})
    assert report.added == 0 and "in a source elsewhere; name the folder of such files" in report.failed[0].why
    with pytest.raises(SchemaError, match="nothing at"):
        db.data.ingest(f"{s3}/none", "t")
    with pytest.raises(StorageError, match="without credentials"):
        db.data.ingest("s3://user:secret@bucket/x", "t")


def test_a_file_of_a_web_server(db: TensorDB, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,y\n")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert db.data.ingest(f"{url}/t.csv", "d").added == 2
            assert db.data.ingest(f"{url}/t.csv", "d").unchanged == 2
            with pytest.raises(StorageError, match="no such file"):
                db.data.ingest(f"{url}/none.csv", "d")
        finally:
            server.shutdown()
            thread.join()


def test_on_mongomock() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        assert db.data.ingest([{"id": 1, "x": png(1)}, {"id": 2, "x": png(2)}], "d", key="id").added == 2
        report = db.data.ingest([{"id": 1, "x": png(3)}, {"id": 2, "x": png(2)}], "d", key="id")
        assert (report.updated, report.unchanged) == (1, 1)
        assert db.data.find({"id": 1}).first()["x"][0, 0, 0] == 3
