"""Raise KeyboardInterrupt at a chosen instruction, as a signal might at a bad moment."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ALL = os.environ.get("MATRICES") == "all"


class Interrupter:
    """Counts the instructions of some modules while a call runs, and interrupts it at one of them.

    A call that waits for another thread looks more often on some days than on others. So a call may end before the
    instruction that was chosen for it. Then it is not interrupted.

    Args:
        files: How the paths of the modules' files end. Of `threading`, what these modules call is meant too.
    """

    def __init__(self, *files: str) -> None:
        self._files = files
        self._left = -1
        self._raised = 0
        self.passed = 0

    def points(self, most: int) -> Iterator[int]:
        """Some instructions of the call that was counted last, with MATRICES=all each, to interrupt others at.

        Proves at the end that most of these were interrupted.
        """
        step = 1 if ALL else max(1, self.passed // most)
        chosen, before = range(0, self.passed * 9 // 10, step), self._raised
        yield from chosen
        raised = self._raised - before
        assert raised > len(chosen) // 2, f"{raised} calls were interrupted, at {len(chosen)} instructions"

    def interrupt(self, call: Callable[[], object], at: int) -> None:
        """Make the call, and interrupt it at an instruction if it gets there."""
        with contextlib.suppress(KeyboardInterrupt):
            self.run(call, at)

    def run(self, call: Callable[[], object], at: int = -1) -> None:
        """Make the call.

        Args:
            call: The call.
            at: The instruction before which it is interrupted, of those of the modules in this thread; -1 for none.
        """
        self._left, self.passed = at, 0
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not self._is_meant(frame):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _is_meant(self, frame: FrameType) -> bool:
        file, caller = frame.f_code.co_filename, frame.f_back
        if file == threading.__file__ and caller is not None:
            return self._is_meant(caller)
        return file.endswith(self._files)

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        # Python looks for signals at calls and jumps. `threading` has none while it holds its own lock.
        if event != "opcode" or threading._active_limbo_lock._is_owned():  # type: ignore[attr-defined]
            return self._step
        if self._left == 0:
            self._left = -1
            self._raised += 1
            raise KeyboardInterrupt
        self._left -= 1
        self.passed += 1
        return self._step
