"""What to do when this process is forked."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def at_fork(
    *,
    before: Callable[[], Any] | None = None,
    after_in_parent: Callable[[], Any] | None = None,
    after_in_child: Callable[[], Any] | None = None,
) -> None:
    """Have functions called around each fork of this process, from now on. Where there is no fork, nothing happens.

    Args:
        before: Called before a fork; of several, the one that was given last comes first.
        after_in_parent: Called in this process after it.
        after_in_child: Called in the new process.
    """
    if hasattr(os, "register_at_fork"):
        calls = {"before": before, "after_in_parent": after_in_parent, "after_in_child": after_in_child}
        os.register_at_fork(**{when: call for when, call in calls.items() if call is not None})
