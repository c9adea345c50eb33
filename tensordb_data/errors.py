"""The exceptions of TensorDB: one tree, each class for one thing a caller may want to handle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TensorDBError(Exception):
    """Base of every error that TensorDB raises on purpose."""


class ConnectError(TensorDBError, ConnectionError):
    """The database cannot be reached, refused the credentials, or is of a kind that TensorDB cannot use."""


class ReadOnlyError(TensorDBError):
    """A warehouse that was opened with `read_only=True` was asked to write."""


class EmbeddedServerError(ConnectError):
    """The managed mongod of a warehouse folder cannot be found, started or joined."""


class QueryError(TensorDBError, ValueError):
    """A filter, sort, limit, field list or update is malformed or not allowed."""


class LengthError(TensorDBError, TypeError, AttributeError):
    """The length of something is asked for that has no end, or whose length is not known yet.

    As a TypeError and an AttributeError, it tells other libraries that there is no length.
    """


class SchemaError(TensorDBError, ValueError):
    """A value does not fit the schema of its dataset."""


class NotFoundError(TensorDBError, LookupError):
    """A query that must match something matched nothing."""


class BusyError(TensorDBError):
    """Samples are being changed, by an update that takes long, and no state of the data before it can be read."""

    before: Mapping[str, tuple[int, int]] | None = None
    """Sequence and mutation counter of the datasets in that state, where they are known."""


class DuplicateError(TensorDBError, ValueError):
    """An entity with the same identity exists already."""


class InUseError(TensorDBError):
    """Something is not removed, because other entities refer to it."""


class TimeLimitError(TensorDBError, TimeoutError):
    """A read took longer than the time that it was given."""

    done: int = 0
    """How many entities had been delivered, of an iteration."""


class StorageError(TensorDBError, OSError):
    """A blob store failed: it is unreachable or full, or does not have an object that the index refers to."""

    row: int | None = None
    """The position of the first bad blob among those that were read, if it is known."""


class CorruptBlobError(StorageError):
    """Stored bytes do not match their checksum or format."""


class SampleError(TensorDBError):
    """One sample could not be read, decoded, transformed or put into a batch."""


class IngestError(TensorDBError, ValueError):
    """Something of a source did not come in. What was added before stays."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
        """The report of the ingest so far."""

    def __reduce__(self) -> tuple[Any, ...]:
        return IngestError, (str(self), self.report)


class WorkerError(TensorDBError, RuntimeError):
    """A process that transforms samples for a stream could not start, or ended before its work was done."""


class StateError(TensorDBError, ValueError):
    """A saved stream or training state does not fit what it is loaded into."""


class CheckpointError(TensorDBError):
    """A checkpoint could not be saved or loaded, or is not complete."""


class RunHeldError(CheckpointError):
    """A run is being saved by somebody else. It has one saver at a time."""


class DeployError(TensorDBError):
    """A checkpoint was not deployed, or the target cannot be used."""


class ArchitectureError(TensorDBError, ValueError):
    """An architecture cannot be stored, or no model can be built from it."""


class NotAllowedError(TensorDBError, PermissionError):
    """An entity in the warehouse needs code outside of the caller's `allow=` list."""


class ClaimLostError(TensorDBError):
    """A claim has run out and another worker has taken over, or the claimed entity was cancelled or deleted."""


class JobCancelledError(TensorDBError):
    """The job that runs here was cancelled. Let this exception end it."""


class UnsupportedError(TensorDBError, NotImplementedError):
    """The connected server (mongomock, for example) or the operating system cannot do this."""


class MissingExtraError(TensorDBError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class CacheWarning(UserWarning):
    """A file in a cache folder is of another user, or others may write to it: it is not used."""


class ScanWarning(UserWarning):
    """A query reads far more documents than it returns; the message names the index that would help."""
