"""Inline: blobs that come with the documents of a block, or are to be fetched by `_id` since a plan holds none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.errors import SampleError
from tensordb_data.stream.plan.inline import inline_rows, moved

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.stream.plan.sample_table import Block


def bring(block: Block, reader: BlobReader) -> Block:
    """The block with the bytes of its inline blobs, or with references to where a compaction has moved them since.

    Raises:
        SampleError: a sample was deleted since.
    """
    wanted = {name for name, inline in block.inline.items() if inline.data is None}
    if not wanted:
        return block
    rows = np.flatnonzero(np.any([inline_rows(block.refs[name]) for name in wanted], axis=0)).tolist()
    found = reader.references([block.id(row) for row in rows], sorted(wanted)) if rows else {}
    refs, columns = dict(block.refs), dict(block.inline)
    for name in wanted:
        mine = np.flatnonzero(inline_rows(block.refs[name]))
        parts: list[Mapping[str, Any]] = []
        for row in mine.tolist():
            part = found.get(block.id(row), {}).get(name)
            if part is None:
                raise SampleError(f"{block.name(row)} was deleted after this pass began; its {name!r} went with it")
            parts.append(part)
        refs[name], columns[name] = moved(block.refs[name], mine, parts)
    return replace(block, refs=refs, inline=columns)
