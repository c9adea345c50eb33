"""The options that all savers of training states share: how often, and how."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tensordb_data.checkpoint.signals import SIGNALS
from tensordb_data.common.deprecation import Grouped
from tensordb_data.common.options import OptionGroup, Written, is_number
from tensordb_data.common.sizes import parse_size
from tensordb_data.errors import CheckpointError, QueryError, SchemaError
from tensordb_data.params.parameter_set import parent_id
from tensordb_data.runs.documents import clean_config

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.params.parameter_set import ParameterSet

WhenBusy = Literal["wait", "skip"]


@dataclass(frozen=True, kw_only=True)
class Every(OptionGroup):
    """How often to save. `every=200` is short for `every=Every(steps=200)`.

    Raises:
        CheckpointError: Nothing is given, a value is outside its range, or both `steps` and `overhead` are given.
    """

    steps: int | None = None
    """Steps between saves. A save is due when a multiple of this number is reached or crossed."""
    seconds: float | None = None
    """Seconds between saves. A save is due when a step ends so long after the last save."""
    overhead: float | None = None
    """Instead of `steps`: save as often as possible while saves cost at most this part of the training time, for
    example 0.02. The cost is measured all the time: the waits of the loop, and how much a save in the background slows
    it down."""

    def _check(self, written: Written) -> None:
        steps, seconds, overhead = self.steps, self.seconds, self.overhead
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            raise CheckpointError(f"{written('steps')} must be a number of steps, at least 1. Found: {steps!r}")
        if seconds is not None and not (is_number(seconds) and 0 < seconds < math.inf):
            raise CheckpointError(f"{written('seconds')} must be a number above 0. Found: {seconds!r}")
        if overhead is not None and not (is_number(overhead) and 0 < overhead < 1):
            raise CheckpointError(
                f"{written('overhead')} must be a part of the training time, between 0 and 1. Found: {overhead!r}"
            )
        if steps is not None and overhead is not None:
            raise CheckpointError(
                f"{written('steps')} gives the number of steps and {written('overhead')} chooses it: give one of them."
            )
        if steps is None and seconds is None and overhead is None:
            raise CheckpointError("Every() needs steps=, seconds= or overhead=.")

    @classmethod
    def of(cls, every: int | Every | None) -> Every | None:
        """What `every=` means, where a number is a number of steps."""
        if every is None or isinstance(every, Every):
            return every
        return cls.spelled({"steps": every}, {"steps": "every="})


@dataclass(frozen=True, kw_only=True)
class SaveOptions(OptionGroup):
    """How a training state is saved. All savers take it as `options=`.

    Raises:
        CheckpointError: A value is malformed.
        SchemaError: `parent` is no checkpoint.
    """

    memory: int | str | None = None
    """Host memory for copies of the state, in bytes or as `"4GB"`. As many saves as fit may run at the same time. By
    default two copies, whatever their size: one is stored while the next is taken."""
    when_busy: WhenBusy = "wait"
    """What to do with a save that is due while all this memory is in use: `"wait"` until one save is stored, or
    `"skip"` it. `stats()` counts both."""
    signals: bool | Sequence[str] = True
    """Which signals save the last complete step before they end the process: True for SIGTERM, Ctrl-C, SIGHUP and
    SIGUSR1, False for none, or their names, `("SIGTERM", "SIGUSR2")`. One that the program ignores stays ignored."""
    grace: float = 10.0
    """Seconds that a step may still take after a signal. Then the process ends with the saves taken before."""
    architecture: str | None = None
    """Name of the architecture in `db.architectures`. It is noted with every checkpoint."""
    parent: ParameterSet | ObjectId | None = None
    """The checkpoint of another run from which this run starts. It is noted with the first checkpoint."""
    config: Mapping[str, Any] | None = None
    """The configuration of the run, such as `vars(args)`. It is noted with the run; `db.runs` finds the run by it."""

    def _check(self, written: Written) -> None:
        if self.memory is not None:
            try:
                parse_size(self.memory, written("memory"))
            except QueryError as error:
                raise CheckpointError(str(error)) from None
        if self.when_busy not in ("wait", "skip"):
            raise CheckpointError(f'{written("when_busy")} is "wait" or "skip". Found: {self.when_busy!r}')
        if not isinstance(self.signals, bool):
            _signals(self.signals, written("signals"))
            object.__setattr__(self, "signals", tuple(self.signals))
        if not (is_number(self.grace) and self.grace >= 0):
            raise CheckpointError(f"{written('grace')} is a number of seconds, 0 or more. Found: {self.grace!r}")
        if self.architecture is not None and not (isinstance(self.architecture, str) and self.architecture):
            raise CheckpointError(f"{written('architecture')} is the name of one. Found: {self.architecture!r}")
        parent_id(self.parent, written("parent"))
        if self.config is not None:
            try:
                object.__setattr__(self, "config", clean_config(self.config))
            except SchemaError as error:
                raise CheckpointError(f"{written('config')}: {error}") from None

    @property
    def numbers(self) -> tuple[int, ...]:
        """The signals by number."""
        if isinstance(self.signals, bool):
            return SIGNALS if self.signals else ()
        return _signals(self.signals, "signals=")

    @classmethod
    def of(cls, options: SaveOptions | None) -> SaveOptions:
        """What `options=` means.

        Raises:
            CheckpointError: It is something else.
        """
        if options is None:
            return cls()
        if not isinstance(options, SaveOptions):
            raise CheckpointError(f'options= is a SaveOptions(memory="4GB", ...). Found: {options!r:.200}')
        return options


OLD_EVERY = Grouped(
    "every", Every, {"every_seconds": "seconds", "max_overhead": "overhead"}, {"every": "steps"}, CheckpointError
)
"""The old options of `Every`."""
OLD_OPTIONS = Grouped(
    "options",
    SaveOptions,
    {name: name for name in ("memory", "when_busy", "signals", "grace", "architecture", "parent")},
    error=CheckpointError,
)
"""The old options of `SaveOptions`."""


def _signals(names: Sequence[str], written: str) -> tuple[int, ...]:
    known = {one.name: one for one in signal.Signals}
    listed = [] if isinstance(names, str) or not isinstance(names, Sequence) else names
    bad = [name for name in listed if name not in known or name in ("SIGKILL", "SIGSTOP")]
    if not listed or bad:
        found = bad[0] if bad else names
        raise CheckpointError(
            f'{written} is True, False, or names of signals such as ("SIGTERM", "SIGUSR1"). Found: {found!r:.200}'
        )
    return tuple(int(known[name]) for name in listed)
