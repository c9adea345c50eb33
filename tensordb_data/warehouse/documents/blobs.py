"""Documents of objects in blob stores: segments, tensors, tombstones, and the leases of those who write them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId
    from typing_extensions import NotRequired


BlobState = Literal["writing", "live", "dying", "gone"]
"""Of a segment, a tensor or a tombstone. See `housekeeping.gc`."""


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
    roots: NotRequired[list[str]]
    """The names of the roots that its blobs are below, if they are in files of others."""
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
