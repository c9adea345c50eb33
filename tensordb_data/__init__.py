"""TensorDB: a machine-learning data warehouse on MongoDB.

Everything is data, everything is identified by a query, and the training side pulls an endless stream.
"""

from tensordb_data.api.database import TensorDB
from tensordb_data.api.selection import Selection
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
from tensordb_data.params.retention import Keep
from tensordb_data.query.query import Query
from tensordb_data.schema import Array, Bytes, Image, Scalar, Text
from tensordb_data.stream.benchmark import bench
from tensordb_data.stream.mixture.mixture import mix

__all__ = [
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
