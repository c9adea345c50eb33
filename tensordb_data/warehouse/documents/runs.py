"""Documents of runs: their rows, parameter sets and attempts; and of architectures."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId
    from typing_extensions import NotRequired


RunState = Literal["running", "ended", "failed", "lost"]
"""Of an attempt. Of one that runs, and whose lease has run out, nobody has noted yet that it is lost."""


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
