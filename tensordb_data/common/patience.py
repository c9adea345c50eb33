"""Whether this thread waits for a server that is away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_impatient: ContextVar[bool] = ContextVar("impatient", default=False)


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Within this block, calls are not repeated while the server is unavailable: somebody looks at a screen."""
    token = _impatient.set(True)
    try:
        yield
    finally:
        _impatient.reset(token)


def is_impatient() -> bool:
    """Whether this is within such a block."""
    return _impatient.get()
