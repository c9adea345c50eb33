"""The ledger of deployments: one small document for each set that a target has served or refused."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bson import ObjectId

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB
    from tensordb_data.params.parameter_set import ParameterSet
    from tensordb_data.warehouse.documents.jobs import DeploymentDocument

COLLECTION = "deployments"
State = Literal["live", "replaced", "refused"]
_LONGEST = 2000  # characters of a reason


@dataclass(frozen=True)
class Deployment:
    """The state of one checkpoint at one target.

    Attributes:
        target: Host and folder, or the name that the deployer was given.
        id: The `_id` of the checkpoint.
        run: The run of the checkpoint.
        step: The step of the checkpoint.
        state: `"live"`; `"replaced"` by a later one; or `"refused"`: it failed there, or was rolled back.
        version: The number of its folder; None for a function, or if no folder was written.
        reason: Why it was refused.
        at: When this state began.
    """

    target: str
    id: ObjectId
    run: str | None
    step: int | None
    state: State
    version: int | None
    reason: str | None
    at: dt.datetime


def deployments(db: TensorDB, target: str | None = None) -> list[Deployment]:
    """The deployments of a project, at all targets or at one. The latest come first."""
    scope: dict[str, Any] = {"_id.p": db.project}
    if target is not None:
        scope["_id.t"] = target
    return [_deployment(doc) for doc in db.warehouse.index[COLLECTION].find(scope).sort([("at", -1), ("_id", -1)])]


class Ledger:
    """What the warehouse knows of one target."""

    def __init__(self, db: TensorDB, target: str) -> None:
        self._db, self.target = db, target

    def refused(self) -> set[ObjectId]:
        """The sets that failed here."""
        return {doc["_id"]["s"] for doc in self._docs().find({**self._scope(), "state": "refused"}, {"_id": 1})}

    def live(self) -> ObjectId | None:
        """The set that was deployed last."""
        found = self._docs().find_one({**self._scope(), "state": "live"}, {"_id": 1})
        return None if found is None else found["_id"]["s"]

    def deployed(self, about: Mapping[str, Any], version: int | None) -> None:
        """Notes that a set is live, and that the one before no longer is."""

        def work(session: Any) -> None:
            docs, now = self._docs(), dt.datetime.now(dt.timezone.utc)
            docs.update_many(
                {**self._scope(), "state": "live"}, {"$set": {"state": "replaced", "at": now}}, session=session
            )
            self._note(about, {"state": "live", "version": version, "reason": None, "at": now}, session)

        self._db.warehouse.index.transaction(work)

    def refuse(self, about: Mapping[str, Any], reason: str) -> None:
        """Notes that a set failed here, and is not to be tried again."""
        now = dt.datetime.now(dt.timezone.utc)
        self._note(about, {"state": "refused", "version": None, "reason": reason[:_LONGEST], "at": now}, None)

    def forgive(self) -> int:
        """Lets what was refused be tried again; returns how many sets these are."""
        return int(self._docs().delete_many({**self._scope(), "state": "refused"}).deleted_count)

    def _note(self, about: Mapping[str, Any], fields: Mapping[str, Any], session: Any) -> None:
        id = {"p": self._db.project, "t": self.target, "s": about["_id"]}
        known = {"run": about.get("run"), "step": about.get("step"), "host": socket.gethostname()}
        self._docs().update_one({"_id": id}, {"$set": {**known, **fields}}, upsert=True, session=session)

    def _docs(self) -> Any:
        return self._db.warehouse.index[COLLECTION]

    def _scope(self) -> dict[str, Any]:
        return {"_id.p": self._db.project, "_id.t": self.target}


def about(found: ParameterSet) -> dict[str, Any]:
    """The fields of a set, for the target where it is deployed."""
    return dict(found)


def _deployment(doc: DeploymentDocument) -> Deployment:
    return Deployment(
        doc["_id"]["t"], doc["_id"]["s"], doc.get("run"), doc.get("step"), doc["state"], doc.get("version"),
        doc.get("reason"), doc["at"],
    )  # fmt: skip
