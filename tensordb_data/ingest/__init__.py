"""Ingest: image folders and tables into a dataset, resumable."""

from tensordb_data.ingest.run import Report, ingest

__all__ = ["Report", "ingest"]
