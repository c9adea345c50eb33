"""Keys as version 0.1 made them, so that samples of that time are found again and not added a second time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from bson import ObjectId

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


def old_key(name: str, row: int, content: bytes) -> bytes:
    """The key of a row: its file, its number and its content."""
    return xxhash.xxh3_128_digest(b"%s\0%d\0%s" % (name.encode(errors="surrogateescape"), row, content))


def old_arrow_keys(name: str, first: int, batch: Any) -> list[bytes]:
    """The keys of the rows of a Parquet file.

    Args:
        name: The name of the file.
        first: The number of the first row.
        batch: A record batch of pyarrow.
    """
    columns = [_old_values(batch.column(i)) for i in range(batch.num_columns)]
    rows = zip(*columns, strict=True)
    return [old_key(name, first + row, repr(values).encode(errors="surrogatepass")) for row, values in enumerate(rows)]


def _old_values(column: Any) -> list[Any]:
    if hasattr(column, "dictionary_decode"):
        column = column.dictionary_decode()
    size = getattr(column.type, "list_size", None)
    if size is not None and column.type.num_fields == 1:
        if column.null_count == 0:
            return [row.tobytes() for row in np.asarray(column.flatten()).reshape(len(column), size)]
        dtype = column.type.value_type.to_pandas_dtype()
        return [None if value is None else np.array(value, dtype) for value in column.to_pylist()]
    return list(column.to_pylist())


def old_ids(project: str, dataset: str, fixed: Mapping[str, Any]) -> Callable[[bytes], ObjectId]:
    """What makes the `_id` of a row of its key.

    Args:
        project: The project.
        dataset: The dataset.
        fixed: `set=` of the ingest.
    """
    salt = repr((project, dataset, sorted(fixed.items()))).encode()
    return lambda key: ObjectId(xxhash.xxh3_128_digest(salt + key)[:12])


def may_have_old(warehouse: Warehouse, dataset: str, *, write: bool) -> bool:
    """Whether a dataset may have samples that version 0.1 has ingested: samples that do not say where they are from.

    If it has none, this is noted, so that it is looked for once.
    """
    datasets, mine = warehouse.index["datasets"], {"_id": warehouse.datasets.id(dataset)}
    if datasets.find_one({**mine, "ingests": 2}, {"_id": 1}) is not None:
        return False
    here = {"_tdb.p": warehouse.project, "dataset": dataset, "_tdb.src": {"$exists": False}}
    if warehouse.index["data"].find_one(here, {"_id": 1}) is not None:
        return True
    if write:
        datasets.update_one(mine, {"$set": {"ingests": 2}})
    return False
