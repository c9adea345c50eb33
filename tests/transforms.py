"""Transforms that worker processes import, for tests."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np


def noisy(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Every kind of value, some of them random."""
    image = sample["image"]
    image[0, 0] = 0  # a transform may change its sample
    return {
        **sample,
        "image": image.astype(np.float32) + rng.random(image.shape[:2], np.float32)[..., None],
        "crop": image[: rng.integers(1, 8), ::2],
        "noise": float(rng.normal()),
        "count": {"large": int(sample["label"]) << 70},
        "half": np.float16(rng.random()),
        "boxes": [{"at": (1, int(rng.integers(9))), "kind": "α", "raw": bytes(3000), "area": image.sum()}],
        "nothing": None,
    }


def plain(sample: dict[str, Any]) -> dict[str, Any]:
    """The label alone."""
    return {"label": sample["label"]}


def bad_17(sample: dict[str, Any]) -> dict[str, Any]:
    """Fails on one sample."""
    if sample["label"] == 17:
        raise ValueError("seventeen is odd")
    return {"label": sample["label"]}


def dies_at_17(sample: dict[str, Any]) -> dict[str, Any]:
    """Its process is killed by one sample."""
    if sample["label"] == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"label": sample["label"]}


def stuck_at_17(sample: dict[str, Any]) -> dict[str, Any]:
    """Does not return from one sample."""
    if sample["label"] == 17:
        threading.Event().wait()
    return {"label": sample["label"], "pid": os.getpid()}


def by_pid(sample: dict[str, Any]) -> dict[str, Any]:
    """Says which process it runs in."""
    return {"label": sample["label"], "pid": os.getpid()}


def unsendable(sample: dict[str, Any]) -> dict[str, Any]:
    """Returns what is no data."""
    return {"label": sample["label"], "thing": object()}


def python_heavy(sample: dict[str, Any]) -> dict[str, Any]:
    """About two milliseconds of pure Python."""
    total = 0
    for value in range(40_000):
        total += value ^ 5
    return {"label": sample["label"], "total": total}


class Scale:
    """Has methods."""

    def apply(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Nothing."""
        return sample
