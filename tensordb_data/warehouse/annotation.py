"""Check the arguments of `annotate`, for samples and for parameter sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bson import ObjectId

from tensordb_data.common.html import Report
from tensordb_data.errors import QueryError

_LONGEST_SOURCE = 200


@dataclass(frozen=True)
class Annotated(Report):
    """What `annotate` did."""

    changed: int
    """How many samples or checkpoints were annotated."""
    unknown: tuple[ObjectId, ...]
    """The ids that no entity of this project has, in the order in which they were given."""


def check_source(source: object) -> None:
    """Refuse a source that is not a name."""
    if not isinstance(source, str) or not source or len(source) > _LONGEST_SOURCE:
        raise QueryError(
            f'source= says who annotates, such as "model:cnn-1@400": a string of 1 to {_LONGEST_SOURCE} characters;'
            f" found {source!r:.80}"
        )


def check_ids(values: object) -> None:
    """Refuse values that are not a dict by `_id`."""
    if not isinstance(values, Mapping):
        raise QueryError(f'annotate takes a dict such as {{id: {{"label": 2}}}}; found {type(values).__name__}')
    wrong = next((id for id in values if not isinstance(id, ObjectId)), None)
    if wrong is not None:
        raise QueryError(f"entities are named by their _id, a bson.ObjectId; found {wrong!r}")
