"""State: the position of a stream, as JSON. Another process, host or world size can resume from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from tensordb_data.errors import StateError
from tensordb_data.feedback.value import Feedback
from tensordb_data.stream.spec import StreamSpec

OnChange = Literal["finish", "error", "replan"]
DataVersion = tuple[int, int]
"""The state of a dataset: its last sequence number, and its mutation counter."""
Versions = Mapping[str, DataVersion]
"""The state of the data: the version of each dataset."""
After = tuple[str, int]
"""The position of a cursor: dataset and sequence number of the last sample that was read."""

_FORMAT = 1


class Position(NamedTuple):
    """A position in the passes of a stream: all ranks together have received `position` samples of pass `number`."""

    number: int = 0
    position: int = 0
    after: After | None = None
    """The last sample that was read, if a cursor has read it."""


class State(NamedTuple):
    """A position, and the data that it refers to. The rest of a pass in progress is read from that data."""

    at: Position = Position()
    versions: Versions | None = None
    ids: str | None = None
    """A digest of the sample ids of the pass, in order."""
    n: int | None = None
    """The number of samples in the pass."""
    followed: Mapping[str, tuple[int, str]] | None = None
    """With follow, for each dataset the sequence number of the last delivered sample, and when the dataset was made."""
    block_shuffle: tuple[int, int] | None = None
    """How the stream shuffles: the values of a `BlockShuffle`. None if it has not been chosen yet."""
    drawn_by: str | None = None
    """A digest of the weights of the pass, if they are of feedback, which changes all the time."""

    def at_position(self, at: Position) -> State:
        """The same data at another position."""
        return self._replace(at=at)

    def to_doc(self, spec: StreamSpec) -> dict[str, Any]:
        """The JSON form."""
        versions = None if self.versions is None else {name: list(pair) for name, pair in self.versions.items()}
        return {
            "format": _FORMAT,
            **_order(spec),
            "pass": self.at.number,
            "position": self.at.position,
            "after": None if self.at.after is None else list(self.at.after),
            "versions": versions,
            "ids": self.ids,
            "n": self.n,
            "followed": None if self.followed is None else {name: list(pair) for name, pair in self.followed.items()},
            "blocks": None if self.block_shuffle is None else list(self.block_shuffle),
            **({} if self.drawn_by is None else {"drawn_by": self.drawn_by}),
        }

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any], spec: StreamSpec) -> State:
        """Read the JSON form. It must be of a stream with the same query, order and seed.

        Raises:
            StateError: It is no state of a stream, or of another stream. The message names the first difference.
        """
        if not isinstance(doc, Mapping) or doc.get("format") != _FORMAT:
            found = doc.get("format") if isinstance(doc, Mapping) else type(doc).__name__
            raise StateError(f"expected what `state_dict()` of a stream returned, of format {_FORMAT}. Found: {found}")
        for name, value in _order(spec).items():
            if doc.get(name) != value:
                raise StateError(
                    f"the state is of a stream with another `{name}`: {doc.get(name)!r}, and this one has {value!r};"
                    " make the stream as it was when the state was taken, or start without the state"
                )
        drawn_by = doc.get("drawn_by")
        try:
            if isinstance(spec.weights, Feedback) and doc["position"] and drawn_by is None:
                raise ValueError("it does not name the weights of its pass")
            if min(int(doc["pass"]), int(doc["position"])) < 0:
                raise ValueError(f"it is at position {doc['position']} of pass {doc['pass']}")
            versions = doc["versions"]
            followed = doc["followed"]
            block_shuffle = doc.get("blocks")
            after = doc["after"] and (str(doc["after"][0]), int(doc["after"][1]))
            return cls(
                Position(int(doc["pass"]), int(doc["position"]), after),
                None if versions is None else {name: (int(pair[0]), int(pair[1])) for name, pair in versions.items()},
                doc["ids"],
                doc["n"],
                None if followed is None else {name: (int(pair[0]), str(pair[1])) for name, pair in followed.items()},
                None if block_shuffle is None else (int(block_shuffle[0]), int(block_shuffle[1])),
                None if drawn_by is None else str(drawn_by),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise StateError(f"the stream state is damaged: {type(error).__name__}: {error}") from error


def _order(spec: StreamSpec) -> dict[str, Any]:
    """What decides the order of the samples, and how they are decoded. A state fits no stream that differs in it."""
    weights: Any = spec.weights if spec.weights is None or isinstance(spec.weights, str) else "function"
    if isinstance(spec.weights, Feedback):
        weights = spec.weights.to_doc()
    return {
        "query": spec.query.replace(fields=None).fingerprint,
        "shuffle": spec.shuffle,
        "replacement": spec.replacement,
        "weights": weights,
        "seed": spec.seed,
        "follow": spec.follow,
        "tokens": None if spec.tokens is None else spec.tokens.to_doc(),
        "decode": {name: doc for name, view in spec.decode if (doc := view.to_doc()) is not None} or None,
    }
