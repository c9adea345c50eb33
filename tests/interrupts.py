"""Raise KeyboardInterrupt at a chosen instruction, as a signal might at a bad moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupter:
    """Counts the instructions of some modules while a call runs, and interrupts it at one of them.

    Args:
        files: How the paths of the modules' files end. Of `threading`, what these modules call is meant too.
    """

    def __init__(self, *files: str) -> None:
        self._files = files
        self._left = -1
        self.passed = 0

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
            raise KeyboardInterrupt
        self._left -= 1
        self.passed += 1
        return self._step
