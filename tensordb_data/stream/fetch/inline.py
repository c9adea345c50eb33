"""Inline blobs: read by `_id`, because a plan does not hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.errors import SampleError
from tensordb_data.stream.plan.inline import inline_rows, replace_references

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.stream.plan.sample_table import SampleTable


def load_inline(table: SampleTable, reader: BlobReader) -> SampleTable:
    """Read the inline blobs of a table. Where a compaction has moved them meanwhile, the references are replaced.

    Raises:
        SampleError: A sample was deleted meanwhile.
    """
    wanted = {name for name, inline in table.inline.items() if inline.data is None}
    if not wanted:
        return table
    rows = np.flatnonzero(np.any([inline_rows(table.refs[name]) for name in wanted], axis=0)).tolist()
    found = reader.references([table.id(row) for row in rows], sorted(wanted)) if rows else {}
    refs, columns = dict(table.refs), dict(table.inline)
    for name in wanted:
        mine = np.flatnonzero(inline_rows(table.refs[name]))
        parts: list[Mapping[str, Any]] = []
        for row in mine.tolist():
            part = found.get(table.id(row), {}).get(name)
            if part is None:
                raise SampleError(f"{table.name(row)} was deleted after this pass began; its {name!r} went with it")
            if "m" in part:  # an update puts no blob into a document
                raise SampleError(
                    f"{table.name(row)}, field {name!r}: its blob was replaced after this pass began, and the"
                    " earlier one is gone; begin a new pass, or narrow the query"
                )
            parts.append(part)
        refs[name], columns[name] = replace_references(table.refs[name], mine, parts)
    return replace(table, refs=refs, inline=columns)
