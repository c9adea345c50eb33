"""torchvision and Kornia for the tests: import what you need of them after this module, or from it.

They are in a folder of their own (`make setup`), for the wheel of torchvision does not find its operators beside
PyTorch for CPUs, and other libraries would fail as they import it. Its v2 transforms are Python alone: they need the
names of the operators, and no operator.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import torch


def _find() -> None:
    folder = next((path for path in map(Path, sys.path) if (path / "tests_only" / "torchvision").is_dir()), None)
    if folder is not None:
        sys.path.append(str(folder / "tests_only"))


def _load() -> None:
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                raise
            torch.library.define(missing[1], "() -> ()")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]


_find()
_load()

from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

__all__ = ["tv_tensors", "v2"]
