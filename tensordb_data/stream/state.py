"""State: where a stream stands, as plain JSON-able data that another process, host or world size can resume from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tensordb_data.errors import StateError
from tensordb_data.stream.spec import StreamSpec

OnChange = Literal["finish", "error", "replan"]
Versions = Mapping[str, tuple[int, int]]
"""The state of the data: sequence and mutation counter of each dataset."""
After = tuple[str, int]
"""Where a cursor stands: dataset and sequence number of the last sample that was read."""

_FORMAT = 1


@dataclass(frozen=True)
class Position:
    """Samples delivered to all ranks together: `position` of them in pass `number`, all of the passes before."""

    number: int = 0
    position: int = 0
    after: After | None = None
    """The last sample read, when a cursor delivered it."""


@dataclass(frozen=True)
class State:
    """A position and the data it refers to; in mid-pass the rest of the pass is read from that same data."""

    at: Position = Position()
    versions: Versions | None = None
    ids: str | None = None
    """Digest of the sample ids of the pass, in order."""
    n: int | None = None
    """Samples in the pass."""
    followed: Mapping[str, tuple[int, str]] | None = None
    """With follow, of each dataset the sequence number of the last sample delivered, and when the dataset was made."""
    block_shuffle: tuple[int, int] | None = None
    """How the stream shuffles, see `rows.Blocks`; None while that is not chosen."""

    def at_position(self, at: Position) -> State:
        """The same data at another position; one a batch, for which `dataclasses.replace` is slow."""
        return State(at, self.versions, self.ids, self.n, self.followed, self.block_shuffle)

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
        }

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any], spec: StreamSpec) -> State:
        """Read the JSON form, which must be of a stream with the same query, order and seed.

        Raises:
            StateError: not a stream state, or one of another stream; names the first difference.
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
        try:
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
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise StateError(f"the stream state is damaged: {type(error).__name__}: {error}") from error


def _order(spec: StreamSpec) -> dict[str, Any]:
    """What decides which sample comes when: a state fits no stream that differs in it."""
    weights = spec.weights if spec.weights is None or isinstance(spec.weights, str) else "function"
    return {
        "query": spec.query.replace(fields=None).fingerprint,
        "shuffle": spec.shuffle,
        "replacement": spec.replacement,
        "weights": weights,
        "seed": spec.seed,
        "follow": spec.follow,
    }
