from __future__ import annotations

import gc
import uuid
import weakref

import pytest

from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.blobs.stores.open import open_store
from tests.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(uuid.uuid4().hex)


def test_one_store_for_each_name() -> None:
    one, same, other = open_store("memory://n1"), open_store("memory://n1"), open_store("memory://n2")
    one.put("k", [b"shared"])
    assert same is one
    assert bytes(same.get("k")) == b"shared"
    assert list(other.list()) == []
    assert open_store("memory://") is open_store("memory://")


def test_what_nobody_holds_is_gone() -> None:
    store = open_store("memory://short-lived")
    store.put("k", [bytes(1000)])
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    assert list(open_store("memory://short-lived").list()) == []
