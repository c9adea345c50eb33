from __future__ import annotations

import http.server
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.blobs.stores import object_store
from tensordb_data.blobs.stores.object_store import ObjectStore
from tensordb_data.blobs.stores.open import open_store
from tensordb_data.errors import CorruptBlobError, StorageError
from tests.s3_server import S3Server
from tests.shelf import Shelf, shuffled
from tests.store_contract import StoreContract


class TestObjectStore(StoreContract):
    @pytest.fixture
    def store(self, s3: str) -> ObjectStore:
        return ObjectStore(f"{s3}/some/prefix")


class TestObjectStoreOfAWholeBucket(StoreContract):
    @pytest.fixture
    def store(self, s3: str) -> ObjectStore:
        return ObjectStore(s3)


def test_prefixes_of_one_bucket_are_apart(s3: str) -> None:
    one, other = ObjectStore(f"{s3}/one"), ObjectStore(f"{s3}/one-more")
    one.put("k", [b"1"])
    other.put("k", [b"22"])
    assert list(one.list()) == [("k", 1)]
    assert list(other.list()) == [("k", 2)]


def test_a_bucket_that_is_not_there(s3: str) -> None:
    store = ObjectStore("s3://no-such-bucket-here")
    with pytest.raises(StorageError, match="NoSuchBucket"):
        list(store.list())
    with pytest.raises(StorageError, match="expected a blob at s3://no-such-bucket-here/k"):
        store.get("k")


def test_wrong_credentials_are_one_line_without_the_secret(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    for act in _acts(ObjectStore(s3)):
        with pytest.raises(StorageError, match=r"access denied|Signature") as caught:
            act()
        assert "not-the-secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nobody_there_is_one_line_soon(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for act in _acts(ObjectStore(s3)):
            with pytest.raises(StorageError, match=f"{s3}.* at {endpoint}: no answer") as caught:
                act()
            assert "\n" not in str(caught.value)


class Stalling(http.server.BaseHTTPRequestHandler):
    """A server that sends the beginning of an answer and then nothing, as often as it is told."""

    protocol_version = "HTTP/1.1"
    body = bytes(range(256)) * 1000
    stalls = 0
    over = threading.Event()

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._head(200, len(self.body))

    def do_GET(self) -> None:
        first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
        self._head(206, last + 1 - first, f"bytes {first}-{last}/{len(self.body)}")
        if Stalling.stalls:
            Stalling.stalls -= 1
            self.wfile.write(self.body[first : first + 1000])
            self.wfile.flush()
            self.over.wait(60)
        else:
            self.wfile.write(self.body[first : last + 1])

    def _head(self, code: int, length: int, place: str = "") -> None:
        self.send_response(code)
        headers = {"Content-Length": str(length), "Content-Range": place, "ETag": '"1"', "Connection": "close"}
        for name, value in (headers | {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def stalling(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(object_store, "_CLIENT", {**object_store._CLIENT, "read_timeout": "0.2s"})
        Stalling.over.clear()
        yield ObjectStore(s3)
        Stalling.over.set()
        server.shutdown()


def test_an_answer_that_stops_in_the_middle_is_asked_for_again(stalling: ObjectStore) -> None:
    Stalling.stalls = 2
    assert stalling.get_ranges("k", [5], [200_000])[0] == Stalling.body[5:200_005]
    assert Stalling.stalls == 0


def test_answers_that_never_come_are_an_error(stalling: ObjectStore) -> None:
    Stalling.stalls = 1000
    with pytest.raises(StorageError, match=r"cannot read s3://.* at http://127\.0\.0\.1") as caught:
        stalling.get_ranges("k", [5], [200_000])
    assert "\n" not in str(caught.value)


def _acts(store: ObjectStore) -> list[Callable[[], object]]:
    return [
        lambda: store.put("k", [b"x"]),
        lambda: store.get("k"),
        lambda: store.size("k"),
        lambda: store.get_ranges("k", [0], [1]),
        lambda: list(store.list()),
        lambda: store.delete("k"),
    ]


def test_a_forked_process_gets_an_error_and_never_hangs(s3: str) -> None:
    store = ObjectStore(s3)
    store.put("k", [b"used in the parent"])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = "nothing"
        try:
            for used in (store, ObjectStore(s3)):  # not even one that the child opens itself works
                for act in _acts(used):
                    try:
                        act()
                        told = "no error"
                    except StorageError as error:
                        told = str(error)
                    if "forkserver" not in told:
                        break
        except BaseException:
            told = traceback.format_exc()
        finally:
            os.write(writing, told.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    assert 'multiprocessing_context="forkserver"' in told
    assert f"process {pid} was forked after process {os.getpid()}" in told
    assert bytes(store.get("k")) == b"used in the parent"


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_other_ways_to_start_a_process_work(s3: str, method: str) -> None:
    store = ObjectStore(s3)
    store.put("k", [b"from the parent"])
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.apply(_read, (s3,)) == b"from the parent"


def _read(url: str) -> bytes:
    return bytes(open_store(url).get("k"))


def test_a_fork_before_first_use_works(s3: str, s3_service: S3Server) -> None:
    code = f"""
import os
from tensordb_data.blobs.stores.open import open_store
store = open_store({s3!r})
pid = os.fork()
store.put(f"k{{pid > 0}}", [b"x"])
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    assert sorted(key for key, _ in store.list()) == ["kFalse", "kTrue"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, **s3_service.env})


def test_a_reader_over_s3(s3: str) -> None:
    rng = np.random.default_rng(0)
    shelf = Shelf(ObjectStore(s3))
    images = rng.integers(0, 256, (200, 784), np.uint8)
    docs = [doc for i in range(0, 200, 50) for doc in shelf.put([row.tobytes() for row in images[i : i + 50]])]
    ragged = [bytes([i]) * (1000 * i) for i in range(20)]
    others = shelf.put(ragged, [3 if i % 2 else None for i in range(20)])
    reader = shelf.reader()
    for seed in range(3):
        refs, order = shuffled(docs, seed)
        rows = reader.gather(refs)
        assert rows is not None
        assert (rows == images[order]).all()
        refs, order = shuffled(others, seed)
        assert [bytes(blob) for blob in reader.read(refs)] == [ragged[i] for i in order]
    assert shelf.finds == 2
    key = shelf.key(docs[0])
    data = bytearray(shelf.store.get(key))
    data[docs[7]["o"] + 1] ^= 1
    shelf.store.put(key, [data])
    # What comes over the network is compared each time.
    with pytest.raises(CorruptBlobError, match=key) as caught:
        reader.gather(BlobRefs.from_docs(docs[:20]))
    assert caught.value.row == 7
    reader.close()
