"""BatchStream: the base of `Stream` and `Mix`. It has one state, and one live iteration that moves the state on."""

from __future__ import annotations

import abc
import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tensordb_data.common.html import Figures
from tensordb_data.common.system.machine import cpus
from tensordb_data.errors import SampleError, StateError
from tensordb_data.stream.deliver.batch_builder import BatchWithState, Results
from tensordb_data.stream.deliver.ordered_pool import PythonEndedError
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.collate import Batch

if TYPE_CHECKING:
    from typing_extensions import Self

S = TypeVar("S")


class BatchStream(abc.ABC, Generic[S]):
    """An endless or finite sequence of batches. It has a state of type `S`, which the iteration moves on.

    It is a context manager, which closes it.
    """

    def __init__(self, start: S) -> None:
        self._worker = (0, 1)
        self._state: S = start
        self._token = 0
        self._live: Callable[[], Generator[Batch, None, None] | None] = lambda: None
        self._stats = Stats(self._threads)

    @property
    def _threads(self) -> int:
        return max(1, min(8, cpus()) // self._worker[1])

    @abc.abstractmethod
    def _results(self, ended: Callable[[], bool]) -> Generator[BatchWithState[S] | SampleError, None, None]:
        """Yield batches from `_state` on. If one is an error, it is the last."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The position after the last delivered batch: a small dict that can be written as JSON.

        Give it to `load_state_dict` of a stream that is made in the same way.
        """

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`: the next batches hold exactly the samples not yet delivered."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over batches, from the present position on.

        Raises:
            NotFoundError: the dataset does not exist, or an endless stream matches no sample.
            SampleError: a sample cannot be read, decoded, transformed or put into a batch; names `_id` and field.
            StateError: a newer iteration of this stream has begun.
        """
        self._begin()
        self._token += 1
        iteration = self._deliver(self._token)
        self._live = weakref.ref(iteration)
        return iteration

    def _begin(self) -> None:
        """Called before each iteration."""

    def _deliver(self, token: int) -> Generator[Batch, None, None]:
        asked, left = Clock.wall(), None
        with closing(self._results(lambda: token != self._token)) as results, _until_python_ends():
            for result in results:
                if isinstance(result, SampleError):
                    raise result
                if token != self._token:
                    raise StateError("this iteration is over: the stream was iterated anew, moved or closed since")
                self._state = result.state_after
                if not result.samples:
                    continue
                now = Clock.wall()
                self._stats.count_batch(result.samples, now - asked, None if left is None else asked - left)
                left = now
                batch = result.batch
                del result  # the loop alone holds the batch
                yield batch
                del batch
                asked = Clock.wall()

    def close(self) -> None:
        """End the iteration in progress, at once.

        The loop gets no more batches. A thread that is in the middle of a read ends after it. The position stays, and
        the stream can be iterated again.
        """
        self._token += 1
        iteration = self._live()
        # An iteration that runs in another thread right now ends when it looks at the token.
        if iteration is not None and inspect.getgeneratorstate(iteration) != inspect.GEN_RUNNING:
            iteration.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> dict[str, Any]:
        """Counts since the stream was made.

        Returns:
            A dict with these keys:

            - `samples`, `batches`, `bytes` (decompressed), `samples_per_second`, `bytes_per_second`, `threads`.
            - `skipped`: bad samples. `deleted`: samples that were deleted since their pass began.
            - `cache`: how many blobs in segments were on this machine (`hits`), and how many came from a store
              (`misses`).
            - `stages`: for each stage, the seconds in which its threads ran (`work`) and did not run (`wait`: for a
              store, a disk, the interpreter's lock, a core), summed over threads.
            - `seconds`: how long the loop waited for first batches (`start`) and for other batches (`wait`), and how
              long it was busy itself (`loop`).
            - `bottleneck`: a stage, `"commits"` (of a stream that follows), `"loop"`, or `None` before the first batch.
            - `advice`: what to do about the bottleneck.
        """
        return Figures(self._stats.report())


@contextlib.contextmanager
def _until_python_ends() -> Iterator[None]:
    """Handle the error that Python raises when the main thread has ended and a stream starts another thread.

    A daemon thread ends without a message, since Python is about to end it anyway. Any other thread gets a StateError.
    """
    try:
        yield
    except (PythonEndedError, RuntimeError) as error:
        # The latter from threads that download.
        if isinstance(error, RuntimeError) and not str(error).startswith("cannot schedule new futures"):
            raise
        if threading.current_thread().daemon:
            raise SystemExit from None  # in a thread, this prints nothing
        raise StateError(
            "the main thread has ended, and Python starts no threads any more that a stream needs: join the thread that"
            " iterates before the script ends"
        ) from error


def flatten(tasks: Iterator[Results[S]]) -> Iterator[BatchWithState[S] | SampleError]:
    """Yield the results of all tasks, one by one. A result that was yielded is not held any more."""
    for results in tasks:
        results.reverse()
        while results:
            yield results.pop()
