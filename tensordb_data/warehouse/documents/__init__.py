"""The documents of each collection, as they are stored in MongoDB.

Samples, parameter sets, log rows, jobs and architectures also have the user's fields, at the top level. `_tdb` holds
what is internal to TensorDB. Other tools may read all of this; they may write the user's fields only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensordb_data.warehouse.documents.blobs import LeaseDocument, SegmentDocument, TensorDocument, TombstoneDocument
from tensordb_data.warehouse.documents.feedback import FeedbackDocument
from tensordb_data.warehouse.documents.forgotten import ForgottenDocument
from tensordb_data.warehouse.documents.frozen import FrozenSegmentsDocument, FrozenSetDocument
from tensordb_data.warehouse.documents.jobs import DeploymentDocument, JobDocument, WorkerDocument
from tensordb_data.warehouse.documents.runs import ArchitectureDocument, LogDocument, ParameterSetDocument, RunDocument
from tensordb_data.warehouse.documents.samples import (
    ChangeDocument,
    DatasetDocument,
    MutationDocument,
    PassDocument,
    SampleDocument,
)
from tensordb_data.warehouse.documents.sources import SourceDocument
from tensordb_data.warehouse.documents.warehouse import EntryDocument, WarehouseDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENTS: Mapping[str, type[Any]] = {
    "data": SampleDocument,
    "datasets": DatasetDocument,
    "segments": SegmentDocument,
    "tensors": TensorDocument,
    "params": ParameterSetDocument,
    "logs": LogDocument,
    "runs": RunDocument,
    "feedback": FeedbackDocument,
    "jobs": JobDocument,
    "architectures": ArchitectureDocument,
    "search": EntryDocument,
    "sources": SourceDocument,
    "tombstones": TombstoneDocument,
    "leases": LeaseDocument,
    "passes": PassDocument,
    "mutations": MutationDocument,
    "changes": ChangeDocument,
    "workers": WorkerDocument,
    "deployments": DeploymentDocument,
    "forgotten": ForgottenDocument,
    "frozen": FrozenSetDocument,
    "frozen_segments": FrozenSegmentsDocument,
    "warehouse": WarehouseDocument,
}
"""The type of the documents of each collection."""
