"""Azure Blob Storage, as azurite has it: a store as any other, blobs of a warehouse, and a source."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensordb_data import StorageError, TensorDB
from tensordb_data.blobs.stores.object_store import ObjectStore
from tests.integration.blobs.azurite import NO_AZURITE, AzureServer, azure_server, azurite
from tests.integration.export.samples import picture
from tests.store_contract import StoreContract


@pytest.fixture(scope="module")
def service() -> Iterator[AzureServer]:
    command = azurite()
    if command is None:
        pytest.skip(NO_AZURITE)
    with tempfile.TemporaryDirectory(prefix="tdba") as folder, azure_server(command, Path(folder)) as server:
        yield server


@pytest.fixture
def azure(service: AzureServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a fresh container, with the environment that a client needs."""
    for name, value in service.env.items():
        monkeypatch.setenv(name, value)
    return service.make_container(f"c{uuid.uuid4().hex[:12]}")


class TestAzure(StoreContract):
    @pytest.fixture
    def store(self, azure: str) -> ObjectStore:
        return ObjectStore(f"{azure}/some/prefix")


def test_blobs_of_a_warehouse(azure: str, mongo_uri: str, tmp_path: Path) -> None:
    with TensorDB(mongo_uri, blobs=f"{azure}/lab", cache=tmp_path) as db:
        x = np.arange(400, dtype=np.float32).reshape(20, 20)
        with db.data.writer("d") as writer:
            writer.add_many(x=x, n=np.arange(20))
        db.params.save({"w": x}, run="r", step=1)
        batches = list(db.data.find({"dataset": "d"}).stream(batch_size=5, passes=1, shuffle=True, seed=0))
        numbers = np.concatenate([batch["n"] for batch in batches])
        assert sorted(numbers.tolist()) == list(range(20))
        assert np.array_equal(np.concatenate([batch["x"] for batch in batches]), x[numbers])
        assert (db.params.find().first().load()["w"] == x).all()
        assert db.fsck().findings == []
        db.data.drop("d")
        db.params.find({"run": "r"}).delete()
        db.gc(grace=0)
        assert db.fsck().findings == [] and not list(ObjectStore(f"{azure}/lab").list("segments/"))


def test_wrong_key_is_one_line(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "bm90LXRoZS1zZWNyZXQ=")
    with pytest.raises(StorageError) as caught:
        ObjectStore(azure).get("k")
    assert "bm90LXRoZS1zZWNyZXQ" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_source(azure: str, db: TensorDB) -> None:
    store = ObjectStore(f"{azure}/photos")
    for n in range(6):
        store.put(f"{'ab'[n % 2]}/{n}.png", [picture(n)])
    store.put("rows.csv", [b"n,zip\n1,007\n2,08\n"])
    report = db.data.ingest(f"{azure}/photos", "photos", format="images")
    assert (report.added, report.failed) == (6, [])
    first = db.data.find({"dataset": "photos", "class": "b"}, sort=[("path", 1)]).first()
    assert first["path"].endswith("b/1.png") and first.encoded("image") == picture(1)
    assert db.data.ingest(f"{azure}/photos", "photos", format="images").unchanged == 6
    assert db.data.ingest(f"{azure}/photos/rows.csv", "rows").added == 2
    assert db.data.find({"dataset": "rows"}).distinct("zip") == ["007", "08"]
