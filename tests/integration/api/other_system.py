"""A client on a system without what Linux alone has: `python other_system.py URI FOLDER`.

Before anything of ours is imported, the calls and modules that macOS or Windows lack are taken away. The program then
does what a client does, and is refused what only Linux runs.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.abc
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = (
    "fork", "register_at_fork", "sched_getaffinity", "process_cpu_count", "pidfd_open", "memfd_create", "pread",
    "preadv", "pwrite", "pwritev", "posix_fallocate", "killpg", "geteuid", "sysconf", "O_DIRECT", "O_DIRECTORY",
    "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC",
)  # fmt: skip
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "_posixshmem")
FRAMEWORKS = ("torch", "torchvision", "kornia", "albumentations", "cv2", "tensorflow", "keras")
"""They take long to import, and what is tested needs none of them."""
POSIX = {
    "tensordb_data.embedded.supervisor",
    "tensordb_data.job_runner.job_main",
    "tensordb_data.stream.transform.worker_main",
    "tensordb_data.stream.transform.worker_pool",
}
"""What is imported only where there is a fork: the programs of processes, and what starts them for a stream."""


class NamedLibrary(ctypes.CDLL):
    """Windows has no library without a name."""

    def __init__(self, name: str | None, *args: Any, **kwargs: Any) -> None:
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        super().__init__(name, *args, **kwargs)


class Missing(importlib.abc.MetaPathFinder):
    """Finds that modules are not there."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name in MODULES + FRAMEWORKS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def take_away() -> None:
    for name in CALLS:
        if hasattr(os, name):
            delattr(os, name)
    os.supports_dir_fd.clear()
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Missing())
    ctypes.CDLL = NamedLibrary  # type: ignore[misc]


def import_all() -> None:
    import tensordb_data

    for module in pkgutil.walk_packages(tensordb_data.__path__, "tensordb_data."):
        if module.name in POSIX:
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in FRAMEWORKS:
                raise


def brighter(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": sample["image"] + 1}


def work(uri: str, project: str, blobs: str, folder: Path) -> None:
    """Write, stream, save and log, each more than a buffer holds, and read it all again."""
    import numpy as np

    from tensordb_data import TensorDB

    n = 300
    images = np.random.default_rng(0).integers(0, 200, (n, 32, 32), np.uint8)
    with TensorDB(uri, project=project, blobs=blobs, cache=folder / "cache") as db:
        with db.data.writer("digits") as writer:
            writer.add_many(image=images, label=np.arange(n))
        digits = db.data.find({"dataset": "digits"})
        for _ in range(2):  # the second time out of the cache
            plain = [*digits.stream(batch_size=64, passes=1)]
            assert np.array_equal(np.concatenate([batch["image"] for batch in plain]), images)
        stream = digits.stream(batch_size=64, shuffle=True, seed=1, passes=1, transform=brighter)
        rows = 0
        for batch in stream:
            assert np.array_equal(batch["image"], images[batch["label"]] + 1)
            rows += len(batch["label"])
        assert rows == n
        weights = {"large": np.random.default_rng(1).random(1 << 18), "small": np.arange(3), "zeros": np.zeros(9999)}
        db.params.save(weights, run="r", step=1)
        found = db.params.find({"run": "r"}).first().load()
        assert all(np.array_equal(found[name], value) for name, value in weights.items())
        with db.logs.run("r") as log:
            log.write(1, loss=0.5)
        assert db.logs.find({"run": "r"}).first()["loss"] == 0.5
        assert not db.fsck().findings
        assert blobs.startswith("file://") or [*(folder / "cache").rglob("*.seg")]


def refusals(uri: str, folder: Path) -> None:
    """What runs on Linux only says so, in one line."""
    from tensordb_data import Permissions, TensorDB
    from tensordb_data.embedded import control
    from tensordb_data.errors import EmbeddedServerError, QueryError, UnsupportedError
    from tensordb_data.job_runner.worker import Worker

    with TensorDB(uri, project="files", blobs=(folder / "blobs").as_uri()) as db:
        tries = (
            (EmbeddedServerError, lambda: TensorDB(folder / "warehouse")),
            (EmbeddedServerError, lambda: control.status(folder)),
            (UnsupportedError, lambda: Worker(db, may=Permissions(allow=["a."]))),
            (QueryError, lambda: db.data.find().stream(batch_size=4, transform="math:sqrt", workers=2)),
        )
        for kind, attempt in tries:
            try:
                with mock.patch("sys.platform", "win32"):
                    attempt()
            except kind as error:
                print(error)
            else:
                raise AssertionError(f"no {kind.__name__}")


if __name__ == "__main__":
    take_away()
    import_all()
    where = Path(sys.argv[2])
    work(sys.argv[1], "files", (where / "blobs").as_uri(), where)
    work(sys.argv[1], "grid", "gridfs://", where)
    refusals(sys.argv[1], where)
