"""Choose the parts of groups so that each part has its share of each stratum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tensordb_data.table.splits.rows import SplitRows

_NONE = -1  # of no part yet


def balanced(rows: SplitRows, hashes: Sequence[float], fractions: Sequence[float]) -> NDArray[np.int64]:
    """The part of each group, so that each part has about its fraction of each stratum.

    Groups that have a part from an earlier split keep it. The others get theirs one by one, the largest first: the one
    after which the squares of what is missing, over the strata and all samples, are least, relative to the fractions.
    """
    n, groups, strata = len(fractions), len(rows.keys), max(1, len(rows.names))
    cells, sizes = np.unique(rows.groups * strata + rows.strata, return_counts=True)
    starts = np.searchsorted(cells, np.arange(groups + 1) * strata).tolist()
    columns, counts = (cells % strata).tolist(), sizes.tolist()
    of_group = np.full(groups, _NONE, np.int64)
    of_group[rows.groups[rows.kept]] = rows.now[rows.kept]
    totals = [0] * (strata + 1)
    whole = [0] * groups
    for group in range(groups):
        for at in range(starts[group], starts[group + 1]):
            totals[columns[at]] += counts[at]
            whole[group] += counts[at]
    totals[strata] = sum(whole)
    ahead = [[-share * total for total in totals] for share in fractions]

    def put(group: int, part: int) -> None:
        row = ahead[part]
        for at in range(starts[group], starts[group + 1]):
            row[columns[at]] += counts[at]
        row[strata] += whole[group]

    out = of_group.tolist()
    for group, part in enumerate(out):
        if part != _NONE:
            put(group, part)
    for group in sorted((g for g in range(groups) if out[g] == _NONE), key=lambda g: (-whole[g], hashes[g])):
        low, high, size = starts[group], starts[group + 1], whole[group]
        costs = [
            (
                sum((2 * row[columns[at]] + counts[at]) * counts[at] for at in range(low, high))
                + (2 * row[strata] + size) * size
            )
            / share
            for row, share in zip(ahead, fractions, strict=True)
        ]
        out[group] = min(range(n), key=costs.__getitem__)
        put(group, out[group])
    return np.array(out, np.int64)
