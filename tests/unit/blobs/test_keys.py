from __future__ import annotations

import pytest

from tensordb_data.blobs.keys import is_key, is_temporary

ID = "0123456789abcdef01234567"


def test_keys_of_ours() -> None:
    for key in (f"segments/{ID}", f"tombstones/{ID}", f"params/{ID}.safetensors", f"architectures/{ID}-12.safetensors"):
        assert is_key(key)
    assert is_temporary(".put-12-0123456789ab")


@pytest.mark.parametrize(
    "key",
    ["thesis.txt", "", ID, f"segments/{ID}\n", f"/segments/{ID}", f"../segments/{ID}", f"segments/{ID.upper()}",
     f"segments/{ID}/x", f"segments/{ID}.safetensors", f"params/{ID}", f"params/../{ID}.safetensors",
     f"params/{ID}-x.safetensors", f"segments/{ID[:-1]}", None, 7, b"segments/" + ID.encode(), {"$ne": 1}],
)  # fmt: skip
def test_keys_of_others(key: object) -> None:
    assert not is_key(key)


@pytest.mark.parametrize("name", [".put-me", ".put-1-x", "put-12-0123456789ab", ".put-12-0123456789ab.txt", ".put-"])
def test_files_of_others(name: str) -> None:
    assert not is_temporary(name)
