"""Connect, as in the interface by example."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mongomock
import numpy as np
import pytest
from pymongo.uri_parser import parse_uri

from tensordb_data import ConnectError, TensorDB
from tests.steady.ports import free_port


def use(db: TensorDB) -> None:
    with db.data.writer("fashion") as w:
        w.add(image=np.ones((2, 2), np.uint8), label=3)
    assert db.data.find({"label": 3}).first()["image"].sum() == 4


def test_a_folder(warehouse_dir: Path) -> None:
    with TensorDB(str(warehouse_dir / "warehouse")) as db:
        use(db)
        assert repr(db).startswith("TensorDB(") and db.project == "default"
    with TensorDB(warehouse_dir / "warehouse", project="shoes") as db:
        assert db.data.find().count() == 0
    db = TensorDB(warehouse_dir / "warehouse")
    assert db.data.find().count() == 1
    db.close()


def test_a_server_with_blobs_in_an_object_store(mongo_uri: str, s3: str, tmp_path: Path) -> None:
    cache = tmp_path / "tdb-cache"
    with TensorDB(mongo_uri, blobs=s3, cache=str(cache), cache_bytes="200GB") as db:
        use(db)
    assert len(list(cache.glob("segments/*.seg"))) == 1


def test_the_original_signature(warehouse_dir: Path) -> None:
    from tensordb_data.embedded import control

    with TensorDB(warehouse_dir):
        pass
    control.up(warehouse_dir, free_port())
    try:
        found = parse_uri(control.uri(warehouse_dir))
        host, port = found["nodelist"][0]
        db = TensorDB(
            ip=host, port=port, db_name="your_db", user_name=found["username"], password=found["password"], studyID="1"
        )
        with db:
            use(db)
            assert db.project == "1"
            assert found["password"] not in repr(db) + str(vars(db)) + repr(db.data) + repr(db.data.find())
        with pytest.raises(ConnectError) as caught:
            TensorDB(ip=host, port=port, db_name="your_db", user_name=found["username"], password="wrong-secret")
        assert "wrong-secret" not in str(caught.value) and len(str(caught.value).splitlines()) == 1
    finally:
        control.down(warehouse_dir)


def test_a_mocked_client() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        use(db)


def test_a_server_that_is_not_there_is_told_in_one_line_soon() -> None:
    address = f"mongodb://user:pass-word@127.0.0.1:{free_port()}/tdb?replicaSet=rs"
    with pytest.raises(ConnectError) as caught:
        TensorDB(address)
    assert "127.0.0.1" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert "pass-word" not in str(caught.value)


def test_import_is_light() -> None:
    heavy = {"torch", "tensorflow", "cv2", "albumentations", "pyarrow", "pandas", "typer", "rich", "mongomock"}
    code = f"import tensordb_data, sys; assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
