"""End helper processes when their training process was killed.

A process that a forkserver has started watches the forkserver. The forkserver lives as long as any such process does.
So after a kill -9 of the training process both would stay for good, with all that they hold open.
"""

from __future__ import annotations

import os
import select
import threading

_watched: set[int] = set()


def exit_with(pid: int) -> None:
    """End this process at once when process `pid` ends, however it ends. No effect where the system cannot tell."""
    if pid in _watched or not hasattr(os, "pidfd_open"):
        return
    _watched.add(pid)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    except OSError:  # an older kernel
        return
    threading.Thread(target=_wait, args=(process,), name="tensordb-orphan", daemon=True).start()


def _wait(process: int) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll()
    os._exit(1)
