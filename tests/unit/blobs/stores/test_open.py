from __future__ import annotations

from pathlib import Path

import pytest

from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.blobs.stores.local import FileStore
from tensordb_data.blobs.stores.object_store import ObjectStore
from tensordb_data.blobs.stores.open import open_store
from tensordb_data.errors import StorageError


def test_folders_by_path_and_by_url(tmp_path: Path) -> None:
    for url in (
        "./blobs",
        "blobs",
        str(tmp_path / "blobs"),
        f"file://{tmp_path}/blobs",
        f"file://localhost{tmp_path}/blobs",
    ):
        store = open_store(url, base=tmp_path)
        assert isinstance(store, FileStore)
        assert store.folder == tmp_path / "blobs"
    spaced = open_store(f"file://{tmp_path}/with%20blank")
    assert isinstance(spaced, FileStore)
    assert spaced.folder == tmp_path / "with blank"
    assert spaced.url == f"file://{tmp_path}/with%20blank"


@pytest.mark.parametrize(
    "url", ["file://elsewhere/path", "file://relative", "relative", "ftp://host/x", "http://host/x", "s3://", ""]
)
def test_urls_that_are_not_understood(url: str) -> None:
    with pytest.raises(StorageError, match="expected"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:SECRETWORD@bucket/prefix",
        "s3://bucket/x?secret_access_key=SECRETWORD",
        "gs://u:SECRETWORD@b",
        "az://SECRETWORD@c/d",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StorageError, match="without credentials") as caught:
        open_store(url)
    assert "SECRETWORD" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


def test_without_secrets() -> None:
    assert without_secrets("s3://bucket/a@b/c") == "s3://bucket/a@b/c"
    assert without_secrets("https://me:pw@host/x?token=1") == "https://host/x"


def test_gridfs_needs_its_database() -> None:
    with pytest.raises(StorageError, match="needs the database"):
        open_store("gridfs://")


def test_an_endpoint_without_encryption_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    with pytest.raises(StorageError, match="AWS_ALLOW_HTTP=true"):
        open_store("s3://bucket/prefix")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    store = open_store("s3://bucket/prefix/")
    assert isinstance(store, ObjectStore)
    assert store.url == "s3://bucket/prefix"


def test_google_and_azure_stores_open_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert repr(open_store("az://container/prefix")) == "ObjectStore('az://container/prefix')"
    assert repr(open_store("gs://bucket/prefix")) == "ObjectStore('gs://bucket/prefix')"
