"""Documents of samples, of their datasets, and of the changes to them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId, Timestamp
    from typing_extensions import NotRequired


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
    m: NotRequired[int]
    """The number of the last mutation of it that left stamps; missing if there was none."""
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
    """`"update"`, `"delete"`, `"annotate"` or `"compact"`."""
    host: str
    pid: int
    since: dt.datetime
    stamps: NotRequired[bool]
    """Whether it leaves stamps."""


class CalmState(TypedDict):
    """A state of the dataset at which no mutation was open."""

    at: Timestamp | None
    """A time of the cluster; None if the server tells none."""
    seq: int
    mut: int


class StampsState(TypedDict):
    """Mutations by which a plan can be brought up to date: those after `since`, up to `to`.

    Each of their samples has a stamp, `_tdb.m`, or is named in the log of changes as deleted. Where `to` is less than
    `mut`, later ones have left none.
    """

    since: int
    to: int


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
    stamps: NotRequired[StampsState]
    """Which mutations left stamps; missing if none did."""
    renamed: NotRequired[dict[str, str]]
    """The names of fields by those that they had before, see `samples.rename_field`."""
    renaming: NotRequired[dict[str, str]]
    """`from` and `to` of a field whose values are being copied to another name."""
    splits: NotRequired[dict[str, SplitDocument]]
    """How the samples were split last, by the field that says into what; of splits that balance strata."""
    pruned: NotRequired[dt.datetime]
    """When entries of its log of changes were removed last."""
    ids: NotRequired[str]
    """Its name within the `_id`s of its samples, see `warehouse.identity`; missing if that is its name."""
    ingests: NotRequired[int]
    """2: no sample of it is of an ingest of version 0.1, but those that were taken over."""


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


class AuthorDocument(TypedDict):
    """Who has made a change."""

    user: str | None
    """The name of the user in the operating system."""
    host: str
    pid: int
    source: NotRequired[str]
    """Who annotates, or what is ingested."""
    job: NotRequired[str]


class ChangeDocument(TypedDict):
    """`changes`: an entry of the log of changes. See `samples.changes`."""

    _id: ObjectId
    p: str
    """The project."""
    dataset: str
    k: str
    """What was done: `"add"`, `"update"`, `"tag"`, …"""
    m: int | None
    """The number of the mutation; None for one without."""
    n: int
    """How many samples."""
    at: dt.datetime
    by: AuthorDocument
    u: NotRequired[bytes]
    """The update, as BSON."""
    few: NotRequired[list[ObjectId]]
    """The samples, if they are at most 100."""
    ids: NotRequired[list[ObjectId]]
    """The samples, if they are more."""
    s: NotRequired[bytes]
    """The sequence numbers of deleted samples, in the order of their ids: int64."""
    old: NotRequired[bytes]
    """The values before, as BSON documents one after the other, compressed with zstd."""
    new: NotRequired[bytes]
    """The values after, in the same form, where `u` does not say them."""
    cut: NotRequired[str]
    """What is left out, and why."""
    lo: NotRequired[int]
    hi: NotRequired[int]
    """The lowest and the highest sequence number of new samples."""
    began: NotRequired[dt.datetime]
    """When the first of them were committed. `at` is of the last ones."""
    r: NotRequired[list[int]]
    """The sequence numbers of new samples: the first and the last of each commit, or of several in a row."""


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
