"""Ingest image folders and tables into a dataset. An ingest can be resumed."""

from tensordb_data.ingest.run import Report, ingest

__all__ = ["Report", "ingest"]
