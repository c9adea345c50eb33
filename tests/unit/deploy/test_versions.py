"""A folder of versions: whenever the deployer is killed, `current` leads to a whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data.continuous import load_deployed
from tensordb_data.deploy import bundle
from tensordb_data.deploy.target import FolderTarget
from tensordb_data.errors import CorruptBlobError, DeployError, NotFoundError

STEPS = ("rename", "replace", "symlink", "unlink", "fsync", "rmdir", "mkdir")


class Killed(BaseException):
    """Nothing after this point has happened."""


def deploy(target: FolderTarget, value: int) -> None:
    about = {"_id": ObjectId(f"{value:024x}"), "run": "r", "step": value}
    target.stage({"w": np.full(100, value)}, about)
    target.swap()
    target.finalize()


def undo(target: FolderTarget, value: int) -> None:
    target.stage({"w": np.full(100, value)}, {"_id": ObjectId(f"{value:024x}"), "step": value})
    target.swap()
    target.back()


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> bool:
    """Whether the work was cut short right before its call number `moment` that changes names or makes them durable."""
    left = [moment]

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return call(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, counting(getattr(os, name)))
        try:
            work()
        except Killed:
            return True
    return False


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., FolderTarget]]:
    targets: list[FolderTarget] = []

    def make(keep: int = 1) -> FolderTarget:
        for target in targets:  # one process at a time: the others are dead
            target.close()
        targets.append(FolderTarget(tmp_path / "models", keep))
        return targets[-1]

    yield make
    for target in targets:
        target.close()


@pytest.mark.parametrize("work", [deploy, undo])
def test_a_kill_at_any_moment_leaves_a_whole_version(
    work: Callable[[FolderTarget, int], None],
    opened: Callable[..., FolderTarget],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, moment = tmp_path / "models", 0
    deploy(opened(), 1)
    deploy(opened(), 2)
    before, cut = 2, True
    while cut:
        value = before + 1
        target = opened()
        cut = killed_at(moment, monkeypatch, lambda target=target, value=value: work(target, value))  # type: ignore[misc]
        now = int(load_deployed(folder).state["w"][0])
        assert now in (before, value)
        after = opened()  # the next deployer
        assert int(load_deployed(folder).state["w"][0]) == now
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        assert names[-1] == "current" and names[-2] == os.readlink(folder / "current"), "none behind the current one"
        deploy(after, value + 1)
        assert load_deployed(folder).about["step"] == value + 1
        assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == {".deployer"}
        before, moment = value + 1, moment + 1
    assert moment > 8


def test_old_versions_go_and_the_one_before_stays(opened: Callable[..., FolderTarget], tmp_path: Path) -> None:
    target = opened(keep=2)
    for value in range(1, 6):
        deploy(target, value)
    assert sorted(path.name for path in (tmp_path / "models").glob("0*")) == ["000003", "000004", "000005"]
    target.back()
    assert load_deployed(tmp_path / "models").about["step"] == 4


def test_a_damaged_version_gives_way_to_the_one_before(opened: Callable[..., FolderTarget], tmp_path: Path) -> None:
    deploy(opened(), 1)
    deploy(opened(), 2)
    damaged = tmp_path / "models" / "000002" / bundle.TENSORS
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CorruptBlobError, match="'w'"):
        load_deployed(tmp_path / "models")
    opened()
    assert load_deployed(tmp_path / "models").about["step"] == 1


def test_one_deployer_a_folder(opened: Callable[..., FolderTarget], tmp_path: Path) -> None:
    opened()
    with pytest.raises(DeployError, match=f"pid {os.getpid()}"):
        FolderTarget(tmp_path / "models", 1)


def test_nothing_there_yet(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing is deployed"):
        load_deployed(tmp_path)


THEIRS = {
    "a numbered folder": {"20240101/model.json": "{}"},
    "a short number": {"1/model.json": "{}"},
    "a number that is a file": {"000001": "x"},
    "a bundle, and more": {"000001/model.json": "{}", "000001/model.safetensors": "", "000001/notes.txt": "x"},
    "the folder for what is written": {".staged/x": "x"},
    "the new link": {".current": "x"},
    "the link": {"current": "x"},
    "the lock": {".deployer": "keep this"},
}


@pytest.mark.parametrize("files", THEIRS.values(), ids=THEIRS)
@pytest.mark.parametrize("before", [False, True])
def test_what_is_not_ours_is_refused_and_stays(
    files: Mapping[str, str], before: bool, opened: Callable[..., FolderTarget], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    if before:
        deploy(opened(), 1)
        opened().close()
        shutil.move(folder / "000001", folder / "000002")
        (folder / "current").unlink()
        (folder / ".deployer").unlink()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    found = content(folder)
    with pytest.raises(DeployError, match=r"was not written by a deployer .*move it away"):
        opened()
    assert content(folder) == found


def content(folder: Path) -> dict[str, bytes | str]:
    """All files below a folder, and where links lead."""
    return {
        os.path.relpath(path, folder): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_links_of_others_stay(opened: Callable[..., FolderTarget], tmp_path: Path) -> None:
    deploy(opened(), 1)
    folder, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    shutil.copytree(folder / "000001", elsewhere)
    for name, leads in (("current", "../elsewhere"), (".current", "../elsewhere"), (".staged", "../elsewhere"),
                        ("000007", "../elsewhere")):  # fmt: skip
        kept = content(folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(leads)
        with pytest.raises(DeployError, match="move it away"):
            opened()
        assert os.readlink(folder / name) == leads and len(content(elsewhere)) == 3
        (folder / name).unlink()
        if name in kept:
            (folder / name).symlink_to(str(kept[name]))


def test_versions_survive_a_lost_link(opened: Callable[..., FolderTarget], tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for value in range(1, 5):
        deploy(opened(keep=5), value)
    (folder / "current").unlink()
    (folder / "000004" / bundle.TENSORS).write_bytes(b"damaged")
    opened(keep=5)
    assert load_deployed(folder).about["step"] == 3
    assert sorted(path.name for path in folder.glob("0*")) == ["000001", "000002", "000003", "000004"]


def test_a_version_with_files_of_others_stays(opened: Callable[..., FolderTarget], tmp_path: Path) -> None:
    folder = tmp_path / "models"
    deploy(opened(), 1)
    (folder / "000001" / "notes.txt").write_text("mine")
    before = content(folder / "000001")
    for value in range(2, 5):
        deploy(opened(), value)
    assert content(folder / "000001") == before
    assert sorted(path.name for path in folder.glob("0*")) == ["000001", "000003", "000004"]


def test_versions_of_0_1_get_a_marker(opened: Callable[..., FolderTarget], tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for value in (1, 2):
        deploy(opened(), value)
        opened().close()
    for marker in folder.glob("*/.tensordb-version"):
        marker.unlink()
    deploy(opened(), 3)
    assert sorted(path.name for path in folder.glob("0*")) == ["000002", "000003"]
    assert len(list(folder.glob("0*/.tensordb-version"))) == 2
