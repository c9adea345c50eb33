"""`blobs=` and endpoints that cannot be meant as they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tensordb_data.blobs.stores.open import open_store
from tensordb_data.errors import StorageError
from tensordb_data.warehouse.catalog import resolve_blobs


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        ('"s3://bucket/x"', "begins or ends with a quote"),
        ("s3://bucket/x\n", "begins or ends with a quote, a blank or a line break"),
        (" ./blobs", "begins or ends"),
        (Path("s3://bucket/x"), "looks like an address"),
        ("minio:9000", "looks like a host and a port"),
        ("~nobody-of-that-name/b", "not known here"),
        ("gridfs://a b$c", "names no collection that MongoDB can have"),
        ("gridfs://a..b", "names no collection"),
    ],
)
def test_blobs_that_are_no_place(blobs: Any, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        resolve_blobs(blobs, None)


def test_places_are_taken_as_before(tmp_path: Path) -> None:
    for url in ("memory://", "gridfs://", "gridfs://a.b", "s3://bucket/x", f"{tmp_path.as_uri()}"):
        assert resolve_blobs(url, None) == url
    assert resolve_blobs(tmp_path / "a b", tmp_path) == "./a b"


def test_an_endpoint_without_a_scheme_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(StorageError, match="found 'minio:9000': write for example http://minio:9000"):
        open_store("s3://bucket/x")
