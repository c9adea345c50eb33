"""Say which fields are in no batch of a stream that names none, because a sample may lack them."""

from __future__ import annotations

import logging

from tensordb_data.stream.plan.sample_table import FieldLayout

log = logging.getLogger("tensordb_data.stream")

_told: set[tuple[str, tuple[str, ...]]] = set()


def tell_left_out(layout: FieldLayout) -> None:
    """Log the fields that a layout leaves out, once in this process for each dataset."""
    for dataset, schema in layout.schemas.items():
        names = tuple(name for name in schema if name not in layout.fields)
        if names and (dataset, names) not in _told:
            _told.add((dataset, names))
            log.warning(
                "batches have no %s, which samples of dataset %r may lack; name what you need in fields=, and narrow"
                " the query to samples that have it, as {%r: {'$exists': True}}",
                ", ".join(map(repr, names)), dataset, names[0],
            )  # fmt: skip
