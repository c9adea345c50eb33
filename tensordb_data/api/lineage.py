"""Lineage: what a checkpoint comes from, and what comes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.api.frozen.parameter_set import ParameterSet
from tensordb_data.common.html import Html, Shown, table
from tensordb_data.common.text_table import text_table
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.jobs.run_name import job_of_run
from tensordb_data.query.query import Query

if TYPE_CHECKING:
    from tensordb_data.api.job import Job
    from tensordb_data.api.protocol import Facade

_MOST = 1_000


@dataclass(frozen=True)
class Lineage(Shown):
    """Where a checkpoint stands."""

    set: ParameterSet
    parents: tuple[ParameterSet, ...]
    """The one that it was made from, then that of this one, and so on; at most 1,000. Deleted ones end the chain."""
    children: tuple[ParameterSet, ...]
    """Those that were made from it; at most 1,000."""
    data: tuple[Query, ...]
    """The queries of the samples that it was trained on."""
    job: Job | None
    """The job whose run has saved it."""
    code: Mapping[str, Any]
    """Script, commit, and whether files differed from it."""
    versions: Mapping[str, Any]
    """The versions of Python and the libraries."""

    def _html(self) -> Html:
        return table(["", ""], self._rows())

    def __repr__(self) -> str:
        return text_table(["", ""], self._rows())

    def _rows(self) -> list[list[Any]]:
        return [
            *([f"parent {i + 1}", _brief(one)] for i, one in enumerate(self.parents[:10])),
            ["this", _brief(self.set)],
            *(["child", _brief(one)] for one in self.children[:10]),
            *(["data", query.brief] for query in self.data),
            *([] if self.job is None else [["job", str(self.job.id)]]),
            *([name, value] for name, value in self.code.items() if value is not None),
        ]


def lineage_of(db: Facade, id: object) -> Lineage:
    """See `Params.lineage`."""
    this = id if isinstance(id, ParameterSet) else _found(db, id)
    parents: list[ParameterSet] = []
    seen, one = {this.id}, this
    while len(parents) < _MOST:
        above = one.lineage.get("parent")
        if above in seen or not isinstance(above, ObjectId):
            break
        seen.add(above)
        next_ = db.params.find({"_id": above}).head(1)
        if not next_:
            break
        one = next_[0]
        parents.append(one)
    below = db.params.find({"lineage.parent": this.id}, limit=_MOST).all()
    about = this.lineage
    data = []
    for row in about.get("data") or ():
        try:
            data.append(Query.from_json(row["query"]))
        except (QueryError, TypeError, KeyError):  # another tool has written it
            continue
    code, versions = about.get("code"), about.get("versions")
    return Lineage(
        this, tuple(parents), tuple(below), tuple(data), _job(db, this.run),
        dict(code) if isinstance(code, Mapping) else {}, dict(versions) if isinstance(versions, Mapping) else {},
    )  # fmt: skip


def _found(db: Facade, id: object) -> ParameterSet:
    if not isinstance(id, (ObjectId, str)):
        raise QueryError(f"lineage takes a checkpoint, or its _id; found {id!r:.100}")
    found: list[ParameterSet] = db.params.find({"_id": id}).head(1)
    if not found:
        raise NotFoundError(f"there is no checkpoint {id} in project {db.project!r}")
    return found[0]


def _job(db: Facade, run: str | None) -> Job | None:
    """The job of a run that a worker has named."""
    id = None if run is None else job_of_run(run)
    if id is None:
        return None
    found: list[Job] = db.jobs.find({"_id": id}).head(1)
    return found[0] if found else None


def _brief(one: ParameterSet) -> str:
    return f"{one.id}  run {one.run!r} step {one.step}"
