"""What a source is called: a path is one on this machine only; a root has the same name wherever it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tensordb_data.ingest.in_place import holding

if TYPE_CHECKING:
    from tensordb_data.blobs.stores.foreign import Root
    from tensordb_data.ingest.given import Given
    from tensordb_data.ingest.source import Source
    from tensordb_data.warehouse.context import Warehouse


class Place:
    """The id of a source, and the place below which its rows are.

    Files that stay where they are are known by the name of their root and the way below it, so that a root may be
    moved. Others are known by their path. Whatever a source was called first, it keeps: so no sample comes in twice if
    some files are copied and others stay.

    Attributes:
        id: What tells the source from others.
        root: What the places of its rows are below.
    """

    def __init__(self, given: Given, warehouse: Warehouse, dataset: str, source: Source) -> None:
        self.id, self.root = source.id, str(getattr(source, "root", source.id))
        if not given.is_place or given.files.folder is None:
            return
        named = warehouse.blobs.named if given.in_place is None else given.in_place.named
        names = _names(self.id, self.root, named)
        scope = {"p": warehouse.project, "dataset": dataset}
        sources = warehouse.index["sources"]

        def is_known(id: str) -> bool:
            return sources.find_one({**scope, "s": id}, {"_id": 1}) is not None

        if not names or is_known(self.id):
            return
        known = next((pair for pair in names if is_known(pair[0])), None)
        if known is not None:
            self.id, self.root = known
        elif given.in_place is not None:
            self.id, self.root = names[0]


def _names(id: str, root: str, named: Mapping[str, Root]) -> list[tuple[str, str]]:
    """What an id and a root are called below each root that holds both, the nearest first."""
    out: list[tuple[str, str]] = []
    for name, holder, key in holding(named, root):
        keys = [holder.key_of(line) for line in id.split("\n")]
        if None not in keys:
            out.append(("\n".join(f"{name}:{each}" for each in keys), f"{name}:{key}"))
    return out
