"""Roots: files of others are read below them, never elsewhere, and never written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tensordb_data import Root, StorageError
from tensordb_data.blobs.stores.foreign import ForeignFile, MissingFileError, is_foreign_key
from tensordb_data.common.system import beneath

ALLOWED = {"path", "stable", "state", "key_of", "read", "mapped"}


@pytest.fixture(params=["kernel", "resolved"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a file is opened below its root: by the kernel, or where that cannot."""
    if request.param == "resolved":
        monkeypatch.setattr(beneath, "_has_call", False)
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/ü b.jpg").write_bytes(b"0123456789")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    return Root(tmp_path / "in")


def file(key: str, size: int = 10) -> ForeignFile:
    return ForeignFile("photos", key, size, 0)


def test_a_root_has_no_method_that_writes_or_deletes() -> None:
    found = {name for name in dir(Root) if not name.startswith("_")}
    assert found <= ALLOWED | {"path", "stable"}
    assert not any(
        word in name for name in vars(Root) for word in ("write", "put", "delete", "remove", "unlink", "open_")
    )
    source = Path(__import__("tensordb_data.blobs.stores.foreign", fromlist=["x"]).__file__).read_text()
    for call in ("O_WRONLY", "O_RDWR", "O_CREAT", "unlink", "rename", "replace(self", "os.write", '"w', "truncate"):
        assert call not in source


def test_ranges_are_read(root: Root, way: str) -> None:
    state, parts = root.read(file("sub/ü b.jpg"), [(0, 3), (8, 2), (8, 3), (2**62, 1), (0, 2**62), (10, 0)])
    assert state.size == 10
    assert [None if part is None else bytes(part) for part in parts] == [b"012", b"89", None, None, None, b""]
    assert root.state("photos", "sub/ü b.jpg") == state


def test_nothing_outside_is_read(root: Root, way: str) -> None:
    inside = root.path
    (inside / "link").symlink_to(inside.parent / "secret")
    (inside / "up").symlink_to("../secret")
    (inside / "folder").symlink_to(inside.parent / "outside")
    (inside / "chain").symlink_to("link")
    for key in ("link", "up", "folder/secret", "chain"):
        with pytest.raises(StorageError, match="leads out of the root 'photos'"):
            root.read(file(key), [(0, 6)])
    for key in ("../secret", "/etc/passwd", "sub/../../secret", "a\0b", "", ".", "sub//x"):
        assert not is_foreign_key(key)
        with pytest.raises(StorageError, match="expected the path of a file below it"):
            root.read(file(key), [(0, 1)])
    (inside / "good").symlink_to("sub/ü b.jpg")  # within
    assert root.read(file("good"), [(0, 1)])[1] == [b"0"]


def test_what_is_no_file(root: Root, way: str) -> None:
    with pytest.raises(MissingFileError, match="found none: it was moved or deleted; put it back, or ingest again"):
        root.read(file("none"), [])
    with pytest.raises(MissingFileError):
        root.read(file("sub/ü b.jpg/x"), [])
    with pytest.raises(StorageError):
        root.read(file("sub"), [])
    os.mkfifo(root.path / "pipe")  # it would block
    with pytest.raises(StorageError, match="no regular file"):
        root.read(file("pipe"), [(0, 1)])
    with pytest.raises(StorageError, match=r"this machine has no folder .*the root 'photos'.*tensordb roots add"):
        Root(root.path / "gone").read(file("x"), [])


def test_a_stable_file_that_is_cut_is_no_signal(root: Root) -> None:
    from tensordb_data.blobs.stores.foreign import copy_of

    path = root.path / "large"
    path.write_bytes(bytes(1 << 16))
    _, memory = Root(root.path, stable=True).mapped(file("large"))
    assert copy_of(memory, 60_000, 5) == bytes(5)
    os.truncate(path, 10)
    assert copy_of(memory, 60_000, 5) is None
    assert copy_of(memory, 1 << 16, 5) is None


def test_values(root: Root) -> None:
    assert pickle.loads(pickle.dumps(Root(root.path, stable=True))) == Root(root.path, True)  # noqa: S301
    assert root.key_of(root.path / "sub/x") == "sub/x"
    assert (root.key_of(root.path), root.key_of(root.path.parent), root.key_of(f"{root.path}x")) == ("", None, None)
    assert Root("/").key_of("/etc/x") == "etc/x"
    (root.path.parent / "short").symlink_to(root.path)
    assert root.key_of(root.path.parent / "short/sub/x") == "sub/x"
    assert Root(root.path.parent / "short").key_of(root.path / "sub/x") == "sub/x"
    with pytest.raises(StorageError, match="mount it as a folder") as caught:
        Root("s3://user:secret@bucket/x?key=1")
    assert "secret" not in str(caught.value) and "key" not in str(caught.value).split("found")[1].split(":")[0]
    for wrong in ("", "a\0b", 5, None):
        with pytest.raises(StorageError):
            Root(wrong)  # type: ignore[arg-type]
