"""The states of the random number generators that training draws from: Python, numpy, torch (CPU and CUDA)."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np


def capture() -> dict[str, Any]:
    """The states of the generators, as plain data."""
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(legacy=True)}
    torch = sys.modules.get("torch")
    if torch is not None:
        state["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def apply(state: dict[str, Any]) -> None:
    """Set the generators to these states.

    A CUDA state is applied to the devices that exist here: a run may resume on another machine.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch = sys.modules.get("torch")
    if torch is None or "torch" not in state:
        return
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)
