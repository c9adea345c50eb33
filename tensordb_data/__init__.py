"""TensorDB: a machine-learning data warehouse on MongoDB.

Everything is data, everything is identified by a query, and the training side pulls an endless stream.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensordb_data.checkpoint.keep import Keep
from tensordb_data.codecs import Array, Bytes, Image, Scalar, Text
from tensordb_data.errors import (
    ArchitectureError,
    CheckpointError,
    ClaimLostError,
    ConnectError,
    CorruptBlobError,
    DeployError,
    DuplicateError,
    EmbeddedServerError,
    JobCancelledError,
    MissingExtraError,
    NotAllowedError,
    NotFoundError,
    QueryError,
    SampleError,
    ScanWarning,
    SchemaError,
    StateError,
    StorageError,
    TensorDBError,
    UnsupportedError,
    WorkerError,
)
from tensordb_data.query import Query
from tensordb_data.records.architectures import Architecture
from tensordb_data.records.job import Job
from tensordb_data.records.sample import Sample
from tensordb_data.records.writer import Writer
from tensordb_data.selection import Selection
from tensordb_data.stream import Mix, Stream, bench, mix
from tensordb_data.warehouse import TensorDB

if TYPE_CHECKING:
    from tensordb_data.logs.writer import RunLog
    from tensordb_data.records.logs import LogRow, LogSelection
    from tensordb_data.records.params import ParameterSet
    from tensordb_data.search.find import Hit
    from tensordb_data.watch import Watch

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Array",
    "Bytes",
    "CheckpointError",
    "ClaimLostError",
    "ConnectError",
    "CorruptBlobError",
    "DeployError",
    "DuplicateError",
    "EmbeddedServerError",
    "Hit",
    "Image",
    "Job",
    "JobCancelledError",
    "Keep",
    "LogRow",
    "LogSelection",
    "MissingExtraError",
    "Mix",
    "NotAllowedError",
    "NotFoundError",
    "ParameterSet",
    "Query",
    "QueryError",
    "RunLog",
    "Sample",
    "SampleError",
    "Scalar",
    "ScanWarning",
    "SchemaError",
    "Selection",
    "StateError",
    "StorageError",
    "Stream",
    "TensorDB",
    "TensorDBError",
    "Text",
    "UnsupportedError",
    "Watch",
    "WorkerError",
    "Writer",
    "bench",
    "mix",
]

# Imported when they are asked for: programs that do not use them start faster.
_LATER = {
    "Hit": "tensordb_data.search.find",
    "LogRow": "tensordb_data.records.logs",
    "LogSelection": "tensordb_data.records.logs",
    "ParameterSet": "tensordb_data.records.params",
    "RunLog": "tensordb_data.logs.writer",
    "Watch": "tensordb_data.watch",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
