"""Samples as a data set of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordb_data.errors import MissingExtraError
from tensordb_data.export.arrow import pyarrow
from tensordb_data.export.contents import Labels
from tensordb_data.export.features import Columns
from tensordb_data.export.plan import contents_of
from tensordb_data.export.rows import check_data, read_rows
from tensordb_data.warehouse.bound_query import BoundQuery


def to_hf(bound: BoundQuery, fields: Sequence[str] | None) -> Any:
    """See `Selection.to_hf`."""
    check_data(bound, "a data set of Hugging Face")
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("a data set of Hugging Face needs datasets: pip install datasets") from None
    pa, contents = pyarrow(), contents_of(bound, fields, nan=True)
    asked = BoundQuery(bound.warehouse, bound.query.replace(fields=list(contents.fields)))
    columns, labels, batches = Columns(contents), Labels(contents.scalars), []
    for run in read_rows(asked, contents.blobs):
        for row in run:
            labels.observe(row)
        batches.append(columns.batch(run))
    metadata = Columns(contents, labels.pairs).schema.metadata
    table = pa.Table.from_batches(batches, columns.schema).replace_schema_metadata(metadata)
    return datasets.Dataset(datasets.table.InMemoryTable(table))
