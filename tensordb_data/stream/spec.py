"""StreamSpec: what a stream delivers. It is a frozen value, which is checked once and needs no connection."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from tensordb_data.common.import_paths import import_path, resolve
from tensordb_data.errors import QueryError
from tensordb_data.feedback.value import Feedback
from tensordb_data.query.query import Query
from tensordb_data.schema.views.view import View
from tensordb_data.stream.tokens import Tokens

End = Literal["short", "drop", "pad"]
Weights = str | Callable[[Mapping[str, Any]], float] | Feedback
Ragged = Literal["list", "error", "pad"]
Shuffle = bool | Literal["full"]


@dataclass(frozen=True)
class StreamSpec:
    """The full description of a stream.

    Raises:
        QueryError: a value is outside its range; the message names the value found.
    """

    query: Query
    """The samples."""
    batch_size: int
    """The number of samples in a batch, at least 1; with `tokens.pack`, of rows. With `tokens.n` it is 1: the tokens
    say where a batch ends."""
    fields: tuple[str, ...] | None = None
    """The fields to deliver; `None` means every required field of the datasets."""
    shuffle: Shuffle = False
    """Whether each pass has a new order. Otherwise it is the order of the query. True shuffles by blocks if the
    selection is larger than the cache; `"full"` always shuffles it as a whole."""
    replacement: bool = False
    """Whether each sample of a pass is drawn from all samples, so that it can come several times."""
    weights: Weights | None = None
    """The relative chance of each sample, with replacement: a field, a function of a sample's index fields, or what a
    run has found out about it."""
    seed: int = 0
    """Decides the order, and the random numbers that transforms receive."""
    passes: int | None = None
    """The number of passes that one iteration delivers; `None` means no end."""
    follow: bool = False
    """Whether the stream delivers what exists, in the order of commits, and then whatever is committed."""
    transform: Callable[..., Any] | str | None = None
    """Applied to each sample (a dict of its fields): `f(sample)`, `f(sample, rng)`, or a transform of torchvision v2,
    Kornia, MONAI or albumentations; or the import path of one, `module:name`."""
    workers: int = 0
    """The number of processes that run the transform, in place of threads. Use them if it is mostly Python code."""
    ragged: Ragged = "list"
    """What to do if the arrays of a field differ in shape within a batch. `list` delivers a list of arrays, `error`
    raises. With `pad`, arrays are always padded with zeros, and a field `<name>_lengths` has the true shapes."""
    max_failures: int | float = 0
    """How many samples that cannot be read, decoded or transformed may be skipped: a number, or a rate below 1."""
    decode: tuple[tuple[str, View], ...] = ()
    """How fields are decoded, of which it is said, by their names in order; see `views_of`."""
    tokens: Tokens | None = None
    """How batches are made of sequences; None if each batch has `batch_size` samples in the order of the pass."""
    rank: int = 0
    """The rank of this stream: it delivers this one of the `world_size` batches of each round."""
    world_size: int = 1
    """The number of streams that share each pass."""
    end: End = "short"
    """What to do with the tail of a pass that does not fill a round of batches. `short` shares it evenly as short
    batches, `drop` drops it, `pad` fills it with samples from the start of the pass. All ranks get the same number of
    batches in any case."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "seed", "passes", "workers", "rank", "world_size"):
            if isinstance(getattr(self, name), np.integer):
                object.__setattr__(self, name, int(getattr(self, name)))
        _whole("batch_size", self.batch_size, 1)
        _whole("world_size", self.world_size, 1)
        _whole("rank", self.rank, 0)
        if self.rank >= self.world_size:
            raise QueryError(f"`rank` must be below `world_size` ({self.world_size}). Found: {self.rank}")
        if self.passes is not None:
            _whole("passes", self.passes, 1)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise QueryError(f"`seed` must be a whole number from 0 to 2**63 - 1. Found: {self.seed!r}")
        if self.shuffle not in (True, False, "full"):
            raise QueryError(f'`shuffle` must be True, False or "full". Found: {self.shuffle!r}')
        if self.end not in get_args(End):
            raise QueryError(f"`end` must be one of {', '.join(get_args(End))}. Found: {self.end!r}")
        if self.ragged not in get_args(Ragged):
            raise QueryError(f"`ragged` must be one of {', '.join(get_args(Ragged))}. Found: {self.ragged!r}")
        if self.weights is not None and not (isinstance(self.weights, (str, Feedback)) or callable(self.weights)):
            raise QueryError(
                f"`weights` must be a field name, a function or a Feedback. Found: {type(self.weights).__name__}"
            )
        if self.weights is not None and not self.replacement:
            raise QueryError(
                "`weights` need `replacement=True`, which they imply: without it every sample comes once a pass"
            )
        budget = self.max_failures
        if (
            isinstance(budget, bool)
            or not isinstance(budget, (int, float))
            or not (budget >= 0 if isinstance(budget, int) else 0 <= budget < 1)
        ):
            raise QueryError(
                f"`max_failures` must be a whole number, or a rate of at least 0 and below 1. Found: {budget!r}"
            )
        if isinstance(self.transform, str):
            resolve(self.transform)
        elif self.transform is not None and not callable(self.transform):
            raise QueryError(f"`transform` must be callable. Found: {type(self.transform).__name__}")
        for name, _ in self.decode:
            if self.fields is not None and name not in self.fields:
                raise QueryError(f"`decode` names the field {name!r}, which is not delivered: {', '.join(self.fields)}")
        _whole("workers", self.workers, 0)
        if self.workers:
            if self.transform is None:
                raise QueryError(f"`workers` run a transform, and there is none. Found: workers={self.workers}")
            import_path(self.transform)
            if not hasattr(os, "fork"):
                raise QueryError(
                    f"`workers` are processes that a forkserver starts, and this system ({sys.platform}) has none: use"
                    f" workers=0, which transforms in threads. Found: workers={self.workers}"
                )
        if self.follow:
            self._check_follow()
        if self.tokens is not None:
            self._check_tokens(self.tokens)
        if self.query.collection != "data":
            raise QueryError(f"only samples can be streamed: a query on `data`. Found one on `{self.query.collection}`")

    @property
    def views(self) -> Mapping[str, View]:
        """How fields are decoded, of which it is said."""
        return dict(self.decode)

    @property
    def draws(self) -> bool:
        """Whether what is delivered depends on random numbers, besides the order."""
        return self.transform is not None or any(view.draws for _, view in self.decode)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to a worker process.

        Raises:
            QueryError: The transform or the weights cannot be sent. The message says what to do.
        """
        for option in ("transform", "weights"):
            _check_sendable(option, getattr(self, option))
        return self.__dict__

    def _check_tokens(self, tokens: Tokens) -> None:
        option = "batch_tokens" if tokens.pack is None else "pack"
        if self.follow:
            raise QueryError(
                f"`{option}` puts samples together that lie far apart in a pass, and a stream that follows has no pass:"
                " leave out `follow`, or give it a `batch_size` alone"
            )
        if self.replacement:
            raise QueryError(
                f"`{option}` delivers each sample once a pass, and `weights` and `replacement` draw at random: leave"
                " them out, or select the samples that are to come more often in a stream of their own"
            )
        if tokens.pack is not None and self.batch_size * tokens.pack >= 2**31:
            raise QueryError(
                f"a batch of {self.batch_size} rows of {tokens.pack} is too large: `batch_size` * `pack` must be below"
                " 2**31"
            )

    def _check_follow(self) -> None:
        taken = {
            "shuffle": bool(self.shuffle),
            "replacement": self.replacement,
            "passes": self.passes is not None,
            "a sort": bool(self.query.sort),
            "a limit": self.query.limit is not None,
            "a frozen set, to which nothing is added": self.query.frozen is not None,
            "world_size": self.world_size > 1,
            f"end={self.end!r}": self.end != "short",
        }
        for name, given in taken.items():
            if given:
                raise QueryError(
                    f"`follow=True` delivers samples in the order of their commits, to one reader: no {name}"
                )


def field_names(fields: Sequence[str] | None) -> tuple[str, ...] | None:
    """`fields` as a tuple of distinct names, or `None` for all.

    Raises:
        QueryError: not a sequence of strings, empty, or with a name given twice.
    """
    if fields is None:
        return None
    if isinstance(fields, str) or not all(isinstance(name, str) for name in fields):
        raise QueryError(f'`fields` must be a list of field names, such as ["image", "label"]. Found: {fields!r}')
    names = tuple(fields)
    if not names or len(set(names)) != len(names):
        raise QueryError(f"`fields` must name at least one field, and each once. Found: {list(names)}")
    return names


def _check_sendable(option: str, value: object) -> None:
    context, reduction = (sys.modules.get(f"multiprocessing.{name}") for name in ("context", "reduction"))
    if context is None or reduction is None or context.get_spawning_popen() is None:
        return  # no process is about to be started
    try:
        reduction.ForkingPickler.dumps(value)
    except Exception as error:  # an object may refuse it by any error
        raise QueryError(
            f"`{option}` cannot be sent to a worker process that is started anew ({error}). Give a function at the top"
            " level of a module, or an object whose parts can be sent, and no lambda or function within another; or"
            ' start workers with multiprocessing_context="fork"'
        ) from error


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise QueryError(f"`{name}` must be a whole number of at least {least} (and below 2**31). Found: {value!r}")
