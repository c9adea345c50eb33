"""How a signal ends a process."""

from __future__ import annotations

import signal
from types import FrameType

import pytest

from tensordb_data.checkpoint.signals import SignalHandler


def test_the_death_of_a_worker_does_not_replace_the_end() -> None:
    deaths: list[int] = []

    def as_pytorch(number: int, frame: FrameType | None) -> None:
        deaths.append(number)
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    usual = signal.signal(signal.SIGCHLD, as_pytorch)
    try:
        handler = SignalHandler(lambda: False, lambda: None)
        handler.requested = signal.SIGTERM
        with pytest.raises(SystemExit) as ended:
            handler.leave()
        signal.raise_signal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, usual)
    assert ended.value.code == 128 + signal.SIGTERM and deaths == [signal.SIGCHLD]
