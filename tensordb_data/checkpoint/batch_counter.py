"""Count the batches that a loop has received, in the iterator from which it receives them.

Worker processes and prefetch threads know which batches were produced, and not which ones were used. Only the iterator
of the loop knows that. So the object over which the loop iterates gets a subclass of its own class, whose iterator
counts. The loop does not change.
"""

from __future__ import annotations

import copyreg
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tensordb_data.errors import CheckpointError


class BatchCounter:
    """Counts the batches that the loop has received from `source`.

    Attributes:
        count: Batches since this counter was made.
        in_iteration: Batches since the newest iterator was made.
        iterations: How many iterators were made.
        lock: Held while the loop goes from waiting to having a batch. A thread that holds it stops the loop there.
        waiting: Whether the loop is asking for a batch, so that it has ended the step of the one before.
    """

    _source: Any

    def __init__(self, source: Any) -> None:
        self._begin()
        self._restore = type(source)
        self._source = source
        _adopt(source, self)

    def _begin(self) -> None:
        self.count = 0
        self.in_iteration = 0
        self.iterations = 0
        self.lock = threading.RLock()
        self.waiting = False
        self.before_iterate: Callable[[], None] = _nothing
        self.on_iterate: Callable[[], None] = _nothing  # after an iterator was made
        self.renew: Callable[[], bool] = _no  # an iteration was empty: whether to begin another in its place
        self.on_ask: Callable[[], None] = _nothing  # before each batch, in the loop's thread
        self.on_failure: Callable[[], None] = _nothing  # no batch came: there is an error instead, about to be raised
        self._source = None

    def close(self) -> None:
        """Give the object its own class back. Iterators in use go on, and no longer count."""
        self.before_iterate = self.on_iterate = self.on_ask = self.on_failure = _nothing
        self.renew = _no
        if self._source is not None:
            set_class(self._source, self._restore)
            self._source = None


class ManualBatchCounter(BatchCounter):
    """Counts the batches that a trainer reports. For trainers with a loop of their own, which may fetch ahead."""

    def __init__(self) -> None:
        self._begin()

    def begin(self) -> None:
        """The trainer begins an iteration of its data."""
        self.before_iterate()
        self.in_iteration = 0
        self.iterations += 1

    def trained(self) -> None:
        """The trainer has trained on another batch."""
        self.count += 1
        self.in_iteration += 1


class _Counting:
    """An iterator that counts its batches. All else is done by the iterator that it wraps."""

    def __init__(self, inner: Iterator[Any], again: Callable[[], Iterator[Any]], counter: BatchCounter) -> None:
        self._inner = inner
        self._again = again
        self._counter = counter
        self._begun = not inspect.isgenerator(inner)

    def __iter__(self) -> _Counting:
        return self

    def __next__(self) -> Any:
        counter = self._counter
        counter.on_ask()
        counter.waiting = True
        try:
            batch = self._next()
        except BaseException as error:
            with counter.lock:
                counter.waiting = False
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                counter.on_failure()
            raise
        if not self._begun:
            self._begun = True
            counter.on_iterate()
        with counter.lock:
            counter.waiting = False
            counter.count += 1
            counter.in_iteration += 1
        return batch

    def _next(self) -> Any:
        try:
            return next(self._inner)
        except StopIteration:
            if self._counter.in_iteration or not self._counter.renew():
                raise
        self._inner = self._again()
        return next(self._inner)

    def __len__(self) -> int:
        return len(self._inner)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _adopt(source: Any, counter: BatchCounter) -> None:
    own = type(source)
    if getattr(own, "_tdb_counted", False):
        raise CheckpointError(
            "The stream is counted by another checkpointer already. Close that one first, or give each its own loader."
        )

    def __iter__(self: Any) -> Iterator[Any]:
        if self is not source:  # a copy
            return own.__iter__(self)  # type: ignore[no-any-return]
        counter.before_iterate()
        inner = own.__iter__(self)
        counter.in_iteration = 0
        counter.iterations += 1
        if not inspect.isgenerator(inner):  # whose body has not begun; see _Counting
            counter.on_iterate()
        return _Counting(inner, lambda: own.__iter__(self), counter)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        # the copy in another process is an ordinary one
        set_class(self, own)
        try:
            reduced = self.__reduce_ex__(protocol)
        finally:
            set_class(self, counted)
        # pickle insists that this very function is given the class of the object at hand
        return (_new, *reduced[1:]) if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__ else reduced  # type: ignore[attr-defined]

    names = {"__iter__": __iter__, "__reduce_ex__": __reduce_ex__, "__module__": own.__module__, "_tdb_counted": True}
    counted: Any = type(own.__name__, (own,), {**names, "__doc__": own.__doc__, "__qualname__": own.__qualname__})
    try:
        set_class(source, counted)
    except TypeError:
        raise CheckpointError(
            f"Cannot count what a {own.__module__}.{own.__qualname__} delivers. Pass the DataLoader "
            "or Stream that the loop iterates."
        ) from None


def set_class(source: Any, kind: type) -> None:
    """Replace the class of an object. Loaders of Accelerate have a property of this name, which says another class."""
    object.__dict__["__class__"].__set__(source, kind)


def _nothing() -> None:
    """No listener."""


def _no() -> bool:
    """No listener."""
    return False


def _new(own: Any, *args: Any) -> Any:
    return own.__new__(own, *args)
