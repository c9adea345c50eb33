"""TensorDB: a machine-learning data warehouse on MongoDB.

Everything is data, everything is identified by a query, and the training side pulls an endless stream.
"""

from tensordb_data.checkpoint.keep import Keep
from tensordb_data.codecs import Array, Bytes, Image, Scalar, Text
from tensordb_data.errors import (
    ArchitectureError,
    BusyError,
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
from tensordb_data.selection import Selection
from tensordb_data.stream import bench, mix
from tensordb_data.warehouse import TensorDB

__all__ = [
    "ArchitectureError",
    "Array",
    "BusyError",
    "Bytes",
    "CheckpointError",
    "ClaimLostError",
    "ConnectError",
    "CorruptBlobError",
    "DeployError",
    "DuplicateError",
    "EmbeddedServerError",
    "Image",
    "JobCancelledError",
    "Keep",
    "MissingExtraError",
    "NotAllowedError",
    "NotFoundError",
    "Query",
    "QueryError",
    "SampleError",
    "Scalar",
    "ScanWarning",
    "SchemaError",
    "Selection",
    "StateError",
    "StorageError",
    "TensorDB",
    "TensorDBError",
    "Text",
    "UnsupportedError",
    "WorkerError",
    "bench",
    "mix",
]
