"""A condition that no interrupt is lost in."""

from __future__ import annotations

import _thread
import threading

import pytest

from tensordb_data.common.interruptible import InterruptibleCondition


def test_an_interrupt_that_comes_just_before_the_wait() -> None:
    """`interrupt_main` marks a signal as arrived without ending a system call, as one does that comes too early."""
    condition = InterruptibleCondition()

    def interrupt() -> None:
        with condition:  # free only once the main thread waits
            _thread.interrupt_main()

    other = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt), condition:
        other.start()
        condition.wait_for(lambda: False)
    other.join()
    assert condition.acquire(blocking=False)
    condition.release()
