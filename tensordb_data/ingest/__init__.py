"""Ingest: files, tables and anything else that has rows, into a dataset. An ingest can be repeated and resumed."""

from tensordb_data.ingest.given import Given
from tensordb_data.ingest.options import Checks, Columns, Reading, Rows
from tensordb_data.ingest.registry import register
from tensordb_data.ingest.report import Failure, Report
from tensordb_data.ingest.run import ingest
from tensordb_data.ingest.source import Chunk, FileInfo, Source

__all__ = [
    "Checks", "Chunk", "Columns", "Failure", "FileInfo", "Given", "Reading", "Report", "Rows", "Source", "ingest",
    "register",
]  # fmt: skip
