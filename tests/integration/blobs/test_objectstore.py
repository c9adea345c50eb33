from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable

import numpy as np
import pytest

from tensordb_data.blobs.objectstore import ObjectStore
from tensordb_data.blobs.refs import BlobRefs
from tensordb_data.blobs.store import open_store
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
from tensordb_data.blobs.store import open_store
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
