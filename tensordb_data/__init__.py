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
from tensordb_data.blobs.stores.foreign import Root
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
from tensordb_data.export.portable import PortableAddress
from tensordb_data.export.report import ExportReport
from tensordb_data.feedback.value import Feedback
from tensordb_data.jobs.permissions import Permissions
from tensordb_data.jobs.spec import JobLimits, JobSpec
from tensordb_data.logs.writer import RunLog
from tensordb_data.params.retention import Keep
from tensordb_data.query.query import Query
from tensordb_data.samples.sample import Sample
from tensordb_data.samples.writer import Writer
from tensordb_data.schema import Array, Audio, Bytes, Image, Scalar, Text, Video, Volume
from tensordb_data.schema.views.clip import Clip
from tensordb_data.schema.views.scaled import Scaled
from tensordb_data.schema.views.window import Window
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
    "Audio",
    "Built",
    "BusyError",
    "Bytes",
    "CheckpointError",
    "ClaimLostError",
    "Clip",
    "ConnectError",
    "CorruptBlobError",
    "DeployError",
    "DuplicateError",
    "EmbeddedServerError",
    "Every",
    "ExportReport",
    "Feedback",
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
    "PortableAddress",
    "Query",
    "QueryError",
    "Root",
    "Run",
    "RunHeldError",
    "RunLog",
    "RunSelection",
    "Sample",
    "SampleError",
    "SaveOptions",
    "Scalar",
    "Scaled",
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
    "Video",
    "Volume",
    "Watch",
    "Window",
    "WorkerError",
    "Writer",
    "bench",
    "mix",
]
