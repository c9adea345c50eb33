"""TensorDB: a machine-learning data warehouse on MongoDB.

Everything is data, everything is identified by a query, and the training side pulls an endless stream.
"""

from tensordb_data.api.architectures import Architecture, Built
from tensordb_data.api.database import TensorDB
from tensordb_data.api.frozen.parameter_set import ParameterSet
from tensordb_data.api.job import Job
from tensordb_data.api.logs import LogRow, LogSelection
from tensordb_data.api.runs import Run, RunSelection
from tensordb_data.api.search import Hit
from tensordb_data.api.selection import Selection
from tensordb_data.api.watch import Watch
from tensordb_data.checkpoint.options import Every, SaveOptions
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
    IngestError,
    InUseError,
    JobCancelledError,
    MissingExtraError,
    NotAllowedError,
    NotFoundError,
    QueryError,
    RunHeldError,
    SampleError,
    ScanWarning,
    SchemaError,
    StateError,
    StorageError,
    TensorDBError,
    TimeLimitError,
    UnsupportedError,
    WorkerError,
)
from tensordb_data.export.partition import Partition
from tensordb_data.export.report import ExportReport
from tensordb_data.jobs.permissions import Permissions
from tensordb_data.jobs.spec import JobLimits, JobSpec
from tensordb_data.logs.writer import RunLog
from tensordb_data.params.retention import Keep
from tensordb_data.query.query import Query
from tensordb_data.samples.sample import Sample
from tensordb_data.samples.writer import Writer
from tensordb_data.schema import Array, Bytes, Image, Scalar, Text
from tensordb_data.stream.benchmark import bench
from tensordb_data.stream.deliver.map_dataset import MapDataset
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.mixture.mixture import Mix, mix
from tensordb_data.stream.options import Shard
from tensordb_data.stream.tokens import Tokens

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Array",
    "Built",
    "BusyError",
    "Bytes",
    "CheckpointError",
    "ClaimLostError",
    "ConnectError",
    "CorruptBlobError",
    "DeployError",
    "DuplicateError",
    "EmbeddedServerError",
    "Every",
    "ExportReport",
    "Hit",
    "Image",
    "InUseError",
    "IngestError",
    "Job",
    "JobCancelledError",
    "JobLimits",
    "JobSpec",
    "Keep",
    "LogRow",
    "LogSelection",
    "MapDataset",
    "MissingExtraError",
    "Mix",
    "NotAllowedError",
    "NotFoundError",
    "ParameterSet",
    "Partition",
    "Permissions",
    "Query",
    "QueryError",
    "Run",
    "RunHeldError",
    "RunLog",
    "RunSelection",
    "Sample",
    "SampleError",
    "SaveOptions",
    "Scalar",
    "ScanWarning",
    "SchemaError",
    "Selection",
    "Shard",
    "StateError",
    "StorageError",
    "Stream",
    "TensorDB",
    "TensorDBError",
    "Text",
    "TimeLimitError",
    "Tokens",
    "UnsupportedError",
    "Watch",
    "WorkerError",
    "Writer",
    "bench",
    "mix",
]
