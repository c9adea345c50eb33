"""The documents of each collection, as they are stored in MongoDB.

Samples, parameter sets, log rows, jobs and architectures also have the user's fields, at the top level. `_tdb` holds
what is internal to TensorDB. Other tools may read all of this; they may write the user's fields only.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bson import Binary, ObjectId, Timestamp
    from typing_extensions import NotRequired

BlobState = Literal["writing", "live", "dying", "gone"]
"""Of a segment, a tensor or a tombstone. See `housekeeping.gc`."""

JobStatus = Literal["waiting", "ready", "running", "done", "dead", "cancelled"]
"""Of a job. See `jobs.transitions`."""


RunState = Literal["running", "ended", "failed", "lost"]
"""Of an attempt. Of one that runs, and whose lease has run out, nobody has noted yet that it is lost."""


class BlobReferenceDocument(TypedDict, total=False):
    """Where one blob of a sample is: in a segment (`k`, `o`), or in this document (`d`, `x`)."""

    k: ObjectId
    """The segment."""
    o: int
    """The offset in the segment."""
    n: int
    """Stored bytes."""
    z: bool
    """Whether the stored bytes are compressed with zstd; missing if not."""
    d: bytes
    """The stored bytes themselves, of a live writer's small blob."""
    x: int
    """The checksum of `d`."""
    m: int
    """The mutation by which it was put in the place of another blob; missing if it is the first."""
    was: dict[str, Any]
    """The reference before that mutation. It may be of a segment that is gone."""


class OriginDocument(TypedDict):
    """Where a sample comes from. See `ingest`."""

    s: str
    """The source; "" for one that has no name."""
    h: bytes
    """A digest of what its row gives: 16 bytes."""
    k: NotRequired[bytes]
    """The key of the row, or its place; missing if it is known by its content."""
    c: NotRequired[bytes]
    """A digest of the names of its fields, then one of each of them, 8 bytes each."""
    f: NotRequired[int]
    """The file that it is from; 0 if its row is not in the source any more."""
    a: NotRequired[ObjectId]
    """The `_id` that it would have, of a sample that version 0.1 has ingested."""


class SampleInternals(TypedDict):
    """`_tdb` of a sample."""

    p: str
    """The project."""
    s: int
    """The sequence number within the dataset. Commits are in this order."""
    b: NotRequired[dict[str, BlobReferenceDocument]]
    """The references of its blobs, by field; missing if it has none."""
    src: NotRequired[OriginDocument]
    """Where an ingest has it from; missing if no ingest has written it."""
    damaged: NotRequired[str]
    """Why a blob of it is damaged, which was taken all the same."""


class SampleDocument(TypedDict):
    """`data`: one sample. The index fields of the user are beside these."""

    _id: ObjectId
    dataset: str
    tags: list[str]
    provenance: NotRequired[dict[str, dict[str, Any]]]
    """For each field that `annotate` has set: `source`, and the time `at`."""
    _tdb: SampleInternals


class DatasetId(TypedDict):
    """`_id` of a dataset."""

    p: str
    """The project."""
    d: str
    """The name of the dataset."""


class OpenMutation(TypedDict):
    """A mutation that has begun and not ended. See `samples.mutations`."""

    id: ObjectId
    mut: int
    """What the mutation counter was raised to when it began."""
    kind: str
    """`"update"`, `"delete"` or `"annotate"`."""
    host: str
    pid: int
    since: dt.datetime


class CalmState(TypedDict):
    """A state of the dataset at which no mutation was open."""

    at: Timestamp | None
    """A time of the cluster; None if the server tells none."""
    seq: int
    mut: int


class LeavingState(TypedDict):
    """What becomes of a dataset."""

    to: str | None
    """Its new name; None if it is dropped."""


class SplitDocument(TypedDict):
    """How samples were split. See `table.splits`."""

    parts: list[str]
    fractions: list[float]
    by: str | None
    stratify: str | None
    seed: int


_Deletions = TypedDict("_Deletions", {"del": int}, total=False)  # `del` is no name in Python


class DatasetDocument(_Deletions):
    """`datasets`: the schema and the counters of one dataset. `del` is `mut` as it was at the last deletion."""

    _id: DatasetId
    seq: int
    """The sequence number of the newest sample."""
    mut: int
    """The mutation counter: raised by each change of existing samples."""
    schema: dict[str, Any] | None
    """The kind of each field, see `schema.Schema`, and a mark, see `schema.schema.MARK`. Format 1 has no mark, and None
    until the first commit."""
    created: dt.datetime
    changed: NotRequired[dt.datetime]
    """When samples were written, changed or deleted last."""
    compacted: NotRequired[int]
    """Samples up to this sequence number have no blobs in their documents."""
    open: NotRequired[list[OpenMutation]]
    """The open mutations, the oldest first."""
    leaving: NotRequired[LeavingState]
    """Set as it is about to go: no commit succeeds any more. See `samples.rename`."""
    was: NotRequired[str]
    """The name that it had before it was renamed."""
    calm: NotRequired[CalmState]
    """A state before the oldest open mutation."""
    renamed: NotRequired[dict[str, str]]
    """The names of fields by those that they had before, see `samples.rename_field`."""
    renaming: NotRequired[dict[str, str]]
    """`from` and `to` of a field whose values are being copied to another name."""
    splits: NotRequired[dict[str, SplitDocument]]
    """How the samples were split last, by the field that says into what; of splits that balance strata."""
    ids: NotRequired[str]
    """Its name within the `_id`s of its samples, see `warehouse.identity`; missing if that is its name."""
    ingests: NotRequired[int]
    """2: no sample of it is of an ingest of version 0.1, but those that were taken over."""


class SourceFile(TypedDict):
    """A file of a source that is in."""

    f: str
    """Its name below the source."""
    z: int
    """Its bytes."""
    t: str
    """Its time, or its ETag."""
    n: int
    """How many rows of it are in."""


_SourceDeletions = TypedDict("_SourceDeletions", {"del": int})


class SourceDocument(_SourceDeletions):
    """`sources`: some files of a source that are in. See `ingest.engine.file_log`."""

    _id: ObjectId
    p: str
    """The project."""
    dataset: str
    s: str
    """The source."""
    o: bytes
    """A digest of the options that decide which rows it gives."""
    born: dt.datetime
    """`created` of the dataset."""
    files: list[SourceFile]


class SegmentDocument(TypedDict):
    """`segments`: one object that holds blobs of samples."""

    _id: ObjectId
    p: str
    """The project."""
    dataset: str
    root: int
    """The blob root, see `BlobRootDocument`."""
    key: str
    """The key of the object in its store."""
    bytes: int
    """The size of the object."""
    blobs: NotRequired[int]
    """Bytes of the blobs alone; missing in segments of old versions."""
    index: list[int]
    """Where the index of the blobs is in the object: offset and bytes."""
    sum: NotRequired[bytes]
    """The checksum of that index; missing in segments that 0.1 wrote."""
    n: int
    """How many samples were written with it."""
    state: BlobState
    created: dt.datetime
    dying: NotRequired[dt.datetime]
    """When a gc has marked it."""
    v: NotRequired[int]
    """Raised by each compaction that refers to it anew."""
    replaced: NotRequired[int]
    """The last mutation that has replaced a blob in it. A gc keeps it for stored plans that are older."""


class TensorId(TypedDict):
    """`_id` of a tensor."""

    p: str
    """The project."""
    h: bytes
    """The content address: the xxh3-128 of its bytes."""


class TensorDocument(TypedDict):
    """`tensors`: where the bytes of one tensor are."""

    _id: TensorId
    root: int
    """The blob root."""
    key: str
    """The key of the object in its store."""
    o: int
    """The offset in the object."""
    n: int
    """Stored bytes."""
    z: NotRequired[int]
    """Bytes of the tensor, if the stored ones are compressed with zstd."""
    state: BlobState
    created: dt.datetime
    run: NotRequired[str]
    """The run that has stored it first."""
    dying: NotRequired[dt.datetime]
    """When a gc has marked it."""


class ParameterSetInternals(TypedDict):
    """`_tdb` of a parameter set."""

    p: str
    """The project."""
    s: int
    """The number of the set within its run. Saves are in this order."""
    parts: list[str]
    """The names of its parts, `"model"` among them."""
    structure: bytes
    """The content address of its structure, which is stored as a tensor."""
    tensors: list[bytes]
    """The content addresses of its tensors, the structure included."""
    bytes: int
    """Bytes of its tensors."""
    a: NotRequired[ObjectId]
    """The attempt of its run; missing if none was under way."""
    line: NotRequired[ObjectId]
    """The first attempt of the line to which its attempt belongs, see `runs.attempts`."""
    plans: NotRequired[list[dict[str, Any]]]
    """Of a set with plans: the datasets `d`, and their mutation counters `m` in the oldest of them."""
    claims: NotRequired[dict[str, Any]]
    """Claims of evaluators, and their attempts, by `mongo.claims.claim_path`."""


class ParameterSetDocument(TypedDict):
    """`params`: one parameter set. Metrics are beside these fields."""

    _id: ObjectId
    run: str | None
    step: int | None
    tags: list[str]
    lineage: dict[str, Any]
    """From what it was made, see `ParameterSet.lineage`."""
    created: dt.datetime
    provenance: NotRequired[dict[str, dict[str, Any]]]
    """For each metric that was added later: `source`, and the time `at`."""
    _tdb: ParameterSetInternals


class LogInternals(TypedDict):
    """`_tdb` of a log row."""

    p: str
    """The project."""
    a: NotRequired[ObjectId]
    """The attempt of its run; missing if none was under way."""
    line: NotRequired[ObjectId]
    """As for a parameter set."""
    tensors: NotRequired[list[bytes]]
    """The content addresses of its arrays that are not in the row; missing if there are none."""


class LogDocument(TypedDict):
    """`logs`: one row of a run. Its values are beside these fields."""

    _id: ObjectId
    run: str
    kind: str
    """`"train"`, `"valid"`, `"system"`, `"output"` or a name of the user."""
    step: int
    time: dt.datetime
    tags: list[str]
    superseded: NotRequired[bool]
    """A later attempt has gone on from before this step, and readers leave the row out; missing if not."""
    _tdb: LogInternals


class ClaimDocument(TypedDict):
    """A claim on an entity, within its document. See `mongo.claims`."""

    owner: str
    token: ObjectId
    since: dt.datetime
    until: dt.datetime
    """When the lease runs out."""


class SaverDocument(ClaimDocument):
    """The claim of the saver of a run. See `runs.lease`."""

    host: str
    pid: int
    process: str | None
    """See `common.system.process_identity`."""


class RunInternals(TypedDict):
    """`_tdb` of a run."""

    p: str
    """The project."""
    saver: NotRequired[SaverDocument]
    """Who saves the run, or has saved it last."""
    hides: NotRequired[bool]
    """Whether rows of the run are, or were, superseded."""


class AfterDocument(TypedDict):
    """What an attempt goes on after."""

    attempt: ObjectId | None
    step: int
    set: ObjectId | None
    """The parameter set that was restored; None if the saver went on with what it had."""


class AttemptDocument(TypedDict):
    """One attempt of a run. See `runs.attempts`."""

    id: ObjectId
    began: dt.datetime
    ended: dt.datetime | None
    state: RunState
    host: str
    pid: int
    code: dict[str, Any]
    """Script, commit, and whether files differ from it."""
    after: NotRequired[AfterDocument | None]
    line: NotRequired[ObjectId]
    """The first attempt of its line; missing if that is one of version 0.1."""


class ImportedDocument(TypedDict):
    """Where a run of another tracker comes from. See `logs.imported.write`."""

    tracker: str
    id: str
    """Its id there."""
    state: NotRequired[str]
    """By which it is seen whether it has changed there; missing until it is in."""
    attempt: NotRequired[ObjectId]
    """That of its rows."""
    pending: list[ObjectId]
    """Those whose rows are to be removed, unless an import is at work."""
    at: NotRequired[dt.datetime]
    rows: NotRequired[int]
    about: NotRequired[dict[str, Any]]


class RunDocument(TypedDict):
    """`runs`: one run."""

    _id: ObjectId
    name: str
    tags: list[str]
    config: NotRequired[dict[str, Any]]
    attempts: list[AttemptDocument]
    """The newest last; none of a run that only has rows, or sets that were saved by hand."""
    imported: NotRequired[ImportedDocument]
    _tdb: RunInternals


class JobInternals(TypedDict):
    """`_tdb` of a job."""

    p: str
    """The project."""
    needs: list[str]
    """The names of the resources that it requires."""
    key: NotRequired[str]
    """`unique` of an active job."""
    claim: NotRequired[ClaimDocument]
    """The claim of the worker that runs it."""
    by: NotRequired[ObjectId]
    """Of a cancelled job: the job that it waited for, and because of which it was cancelled."""
    end: NotRequired[ObjectId]
    """The mark of the last report, by which its worker finds it again."""
    last: NotRequired[ObjectId]
    """The token of the worker that has reported last."""


class JobDocument(TypedDict):
    """`jobs`: one job."""

    _id: ObjectId
    kind: str
    entry: NotRequired[str]
    """The import path of its function."""
    script: NotRequired[str]
    """Or the text of its program."""
    args: dict[str, Any]
    data: NotRequired[str]
    """The query of its samples, as JSON; and so `architecture` and `params`."""
    architecture: NotRequired[str]
    params: NotRequired[str]
    tags: list[str]
    priority: int
    requires: dict[str, float]
    """The least amount of each resource that its worker must have."""
    status: JobStatus
    attempts: int
    """How often it was begun."""
    max_attempts: int
    backoff: float
    """Seconds before the second attempt, doubled before each further one."""
    after: NotRequired[list[ObjectId]]
    """The jobs that must be done first."""
    after_any: NotRequired[list[ObjectId]]
    """The jobs that must have ended first, in whatever way."""
    unique: NotRequired[str]
    """The key that one active job at a time may have."""
    time_limit: NotRequired[float]
    """Seconds for an attempt."""
    created: dt.datetime
    due: NotRequired[dt.datetime]
    """The earliest time of the next attempt."""
    started: NotRequired[dt.datetime]
    """The time of the last claim."""
    worker: NotRequired[str]
    """The name of the last worker."""
    progress: NotRequired[float]
    """How much is done, from 0 to 1."""
    cancel: NotRequired[bool]
    """Whether it was asked to end."""
    result: NotRequired[Any]
    left_out: NotRequired[list[str]]
    """A line for each part of the result that could not be stored."""
    reason: NotRequired[str]
    """Why it failed, was lost or cancelled."""
    finished: NotRequired[dt.datetime]
    events: list[dict[str, Any]]
    """The newest events, the oldest first: `at`, `event`, and what belongs to it."""
    _tdb: JobInternals


class ArchitectureInternals(TypedDict):
    """`_tdb` of an architecture."""

    p: str
    """The project."""
    blob: NotRequired[bytes]
    """The content address of its stored model or source."""
    tensors: NotRequired[list[bytes]]
    """The same, in a list, for gc."""


class ArchitectureDocument(TypedDict):
    """`architectures`: one version of an architecture. Further fields of the user are beside these."""

    _id: ObjectId
    name: str
    version: int
    tags: list[str]
    created: dt.datetime
    format: str
    """How it is stored, see `architectures.formats`."""
    factory: NotRequired[str]
    """The import path of the function that makes it."""
    kwargs: NotRequired[dict[str, Any]]
    """The arguments of the factory."""
    _tdb: ArchitectureInternals


class EntryField(TypedDict):
    """The field of a dataset that an entry of the search index is about."""

    n: str
    """The name of the field."""
    v: NotRequired[str]
    """A text that the field has."""
    r: NotRequired[list[str]]
    """Of a word page: words of the field."""
    e: NotRequired[list[Any]]
    """Of a word page: for each word the `_id` of one sample that has it."""


class EntryDocument(TypedDict):
    """`search`: one entry of the search index. See `search.index`."""

    _id: Binary
    """A hash of what the entry is about."""
    p: str
    """The project."""
    k: str
    """The collection."""
    n: str
    """The name: of a dataset, run or architecture, or the kind of a job."""
    t: list[str]
    """The tags."""
    x: list[str]
    """The texts."""
    w: list[str]
    """The words by which it is found. A scoped one begins with a blank."""
    g: NotRequired[int]
    """The generation of `w`, see `search.index`; not there in entries of 0.1."""
    at: dt.datetime
    """When it was written last."""
    e: NotRequired[Any]
    """The `_id` of the entity, or of one of the group."""
    f: NotRequired[EntryField]
    """Of an entry for a text or for words: the field."""


class ObjectAddress(TypedDict):
    """One object of a blob store."""

    root: int
    key: str


class TombstoneDocument(TypedDict):
    """`tombstones`: an object that names deleted entities. See `warehouse.deletion_log`."""

    _id: ObjectId
    p: str
    """The project."""
    c: str
    """The collection of the entities."""
    dataset: str | None
    """The dataset of samples."""
    root: int
    key: str
    n: int
    """How many entities it names."""
    state: Literal["writing", "live"]
    created: dt.datetime
    objects: NotRequired[list[ObjectAddress]]
    """Of parameter sets: the objects that hold their structures."""


class ShareDocument(TypedDict):
    """What a process has stored of a set that several processes save together."""

    set: ObjectId
    rank: int
    stored: NotRequired[bool]
    """Whether all that it has is durable."""
    table: NotRequired[bytes]
    """Then, what that is, as JSON. See `params.table`."""
    done: NotRequired[bool]
    """Whether the set is committed."""
    failed: NotRequired[str]
    """Why this process cannot go on with the set."""


class LeaseDocument(TypedDict):
    """`leases`: the lease of a running save or backup, or objects that a gc has to look at. See `tensors.lease`."""

    _id: ObjectId
    state: Literal["held", "ended"]
    began: NotRequired[dt.datetime]
    until: NotRequired[dt.datetime]
    """When it runs out, unless it is renewed."""
    objects: NotRequired[list[ObjectAddress]]
    """The objects that the save has begun to write."""
    backup: NotRequired[bool]
    """Whether a backup holds it."""
    share: NotRequired[ShareDocument]
    """What a process stores of a set that several processes save together. See `params.shared`."""


class PassDocument(TypedDict):
    """`passes`: what the readers of a stream have agreed on. It expires. See `stream.passes.registry`."""

    _id: str
    at: dt.datetime
    state: NotRequired[str]
    """The data of a pass, as JSON."""
    part: NotRequired[int]
    """The number of a part of a plan, which has `ids` and `data` too."""
    ids: NotRequired[str]
    """The digest of the plan."""
    data: NotRequired[bytes]
    """The bytes of this part."""


class MutationDocument(TypedDict):
    """`mutations`: the lease of an open mutation. See `samples.mutations`."""

    _id: ObjectId
    p: str
    """The project."""
    d: list[str] | None
    """The datasets that it may change; None for all of the project."""
    kind: str
    until: dt.datetime
    """When it runs out, unless it is renewed."""


class WorkerDocument(TypedDict):
    """`workers`: a worker that is alive. See `jobs.worker_registry`."""

    _id: ObjectId
    p: str
    """The project."""
    fields: dict[str, Any]
    """Name, host, pid, kinds, allow, scripts, has (its resources), job and draining."""
    until: dt.datetime
    """When it counts as dead, unless it reports again."""


class DeploymentId(TypedDict):
    """`_id` of a deployment."""

    p: str
    """The project."""
    t: str
    """The target."""
    s: ObjectId
    """The parameter set."""


class DeploymentDocument(TypedDict):
    """`deployments`: one parameter set at one target. See `deploy.ledger`."""

    _id: DeploymentId
    run: str | None
    step: int | None
    host: str
    state: Literal["live", "replaced", "refused"]
    version: int | None
    reason: str | None
    """Why it was refused."""
    at: dt.datetime
    """When this state began."""


class BlobRootDocument(TypedDict):
    """One place for blobs."""

    id: int
    url: str


class WarehouseDocument(TypedDict):
    """`warehouse`: the only document of this collection. See `warehouse.catalog`."""

    _id: Literal["warehouse"]
    format: int
    """See docs/format.md."""
    roots: list[BlobRootDocument]
    words: NotRequired[int]
    """The generation of the words of all entries, see `search.index`."""
    rebuilding: NotRequired[list[str]]
    """The projects of which a rebuild has begun and not ended."""


DOCUMENTS: Mapping[str, type[Any]] = {
    "data": SampleDocument,
    "datasets": DatasetDocument,
    "segments": SegmentDocument,
    "tensors": TensorDocument,
    "params": ParameterSetDocument,
    "logs": LogDocument,
    "runs": RunDocument,
    "jobs": JobDocument,
    "architectures": ArchitectureDocument,
    "search": EntryDocument,
    "tombstones": TombstoneDocument,
    "leases": LeaseDocument,
    "passes": PassDocument,
    "mutations": MutationDocument,
    "workers": WorkerDocument,
    "deployments": DeploymentDocument,
    "warehouse": WarehouseDocument,
}
"""The type of the documents of each collection."""
