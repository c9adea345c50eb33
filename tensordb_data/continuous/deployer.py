"""Deployer: keeps what is served at the best parameter set that a query finds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.continuous.loop import Loop, log
from tensordb_data.deploy.ledger import Ledger, about
from tensordb_data.deploy.target import About, FolderTarget, FunctionTarget, Target, is_set
from tensordb_data.errors import CheckpointError, CorruptBlobError, DeployError, QueryError
from tensordb_data.mongo.errors import is_transient
from tensordb_data.params.load import describe

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB
    from tensordb_data.api.frozen.parameter_set import ParameterSet
    from tensordb_data.api.selection import Selection

Check = Callable[[Any, About], Any]

_AGAIN, _LONGEST = 1.0, 300.0  # seconds until a set whose bytes could not be had is tried again
_INFINITE = [float("nan"), float("inf"), float("-inf")]


class Deployer(Loop):
    """Watches a query for the best checkpoint, and deploys it: loads it, checks it, and swaps it in at once.

    A checkpoint is refused if its bytes are damaged, or if its check or its swap fails. The reason is noted in the
    warehouse. A refused checkpoint is not tried again at this target; the next best one is. A checkpoint whose bytes
    cannot be read at the moment is skipped, and tried again later. The previous version is kept. If a swap fails, it is
    live again.

    One deployer at a time holds a folder. The folder gets numbered versions and a link `current`. The link always leads
    to a whole version, no matter when the deployer is killed. `load_deployed` reads it. A function as target is called
    in the process of the deployer, once for each swap and once when the deployer starts.

    Args:
        db: The warehouse.
        best: Checkpoints with a sort, the best first: `db.params.find({"run": "r"}, sort=[("val_acc", -1)])`. Those in
            which the first field of the sort is missing, or neither a finite number nor a date, are never deployed.
        to: A folder; or a function that takes the state and the fields of the checkpoint.
        check: Called before the swap, with the state as it would be served and the fields of the checkpoint. It may run
            a smoke test. The checkpoint is refused if it raises or returns False.
        notify: Called with the fields of the checkpoint after the swap into a folder. It may tell a server. If it
            raises, the swap is undone, and it is called with the previous checkpoint.
        keep: How many versions to keep in the folder besides the current one, at least 1.
        part: The part of the checkpoint that is deployed.
        name: The name of the target in the warehouse; by default host and folder.

    Raises:
        QueryError: `best` is not a selection of checkpoints with a sort.
        DeployError: Another deployer holds the folder.
    """

    def __init__(
        self,
        db: TensorDB,
        best: Selection[ParameterSet],
        to: str | Path | Callable[[Any, About], Any],
        *,
        check: Check | None = None,
        notify: Callable[[About], Any] | None = None,
        keep: int = 1,
        part: str = "model",
        name: str | None = None,
    ) -> None:
        super().__init__()
        self._best = _ranked(best)
        if not callable(to) and not isinstance(to, (str, Path)):
            raise DeployError(f"to is a folder, or a function that is given the parameters. Found: {to!r:.200}")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise DeployError(f"keep= is a number of versions, at least 1, as a way back. Found: {keep!r}")
        self._check, self._notify, self._part = check, notify, part
        self._target: Target = FunctionTarget(to, name) if callable(to) else FolderTarget(Path(to), keep)
        self.ledger = Ledger(db, name or self._target.name)
        self._db = db
        self._reconciled = False
        self._later: dict[ObjectId, tuple[float, float]] = {}

    def once(self) -> float | None:
        if not self._reconciled:
            self._reconcile()
        self._reconciled = False  # unless nothing is raised
        refused = self.ledger.refused()
        found = self._target.current()
        for candidate in self._best:
            if found is not None and is_set(found[0], candidate.id):
                break
            if candidate.id not in refused and self._due(candidate.id) and self._tried(candidate):
                break
        self._reconciled = True
        now = time.monotonic()
        return min((max(0.0, at - now) for at, _ in self._later.values()), default=None)

    def roll_back(self, reason: str = "rolled back by hand") -> None:
        """Makes the previous checkpoint live again, and refuses the current one at this target.

        Raises:
            DeployError: There is no previous checkpoint.
        """
        found = self._target.current()
        if found is None:
            raise DeployError(f"nothing is deployed at {self.ledger.target}")
        if not self._target.can_go_back:
            raise DeployError(f"there is none before {describe(found[0])} at {self.ledger.target}: nothing was changed")
        self._target.back()
        self.ledger.refuse(found[0], reason)
        self._reconcile()

    def close(self) -> None:
        """Release the folder. A second call does nothing."""
        self._target.close()

    def __enter__(self) -> Deployer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watched(self) -> Selection[Any]:
        query = self._best.query.replace(sort=None, limit=None, fields=None)
        return self._db.select(query)

    def _reconcile(self) -> None:
        """Make the ledger agree with the target, after a start or an error."""
        found = self._target.current()
        if found is not None and self.ledger.live() != found[0]["_id"]:
            self._tell(found[0])
            self.ledger.deployed(*found)

    def _due(self, id: ObjectId) -> bool:
        return id not in self._later or self._later[id][0] <= time.monotonic()

    def _tried(self, found: ParameterSet) -> bool:
        """Whether the set is live now."""
        try:
            self._deploy(found)
        except _Refused as refusal:
            reason = str(refusal)
        except (CheckpointError, CorruptBlobError) as error:
            if not self._db.params.find({"_id": found.id}).count():
                return False  # it was deleted meanwhile: nothing to be blamed for
            reason = str(error)
        except OSError as error:  # the store, or our disk
            if is_transient(error):
                raise
            delay = min(_LONGEST, 2 * self._later[found.id][1]) if found.id in self._later else _AGAIN
            self._later[found.id] = (time.monotonic() + delay, delay)
            log.warning("%s cannot be deployed now, again in %.0f s: %s", describe(found), delay, error)
            return False
        else:
            self._later.pop(found.id, None)
            log.info("deployed %s to %s", describe(found), self.ledger.target)
            return True
        self._later.pop(found.id, None)
        self.ledger.refuse(about(found), reason)
        log.warning("refused %s: %s", describe(found), reason)
        return False

    def _deploy(self, found: ParameterSet) -> None:
        fields = about(found)
        state = self._target.stage(found.load(self._part), fields)
        if self._check is not None and self._called("check", self._check, state, fields) is False:
            raise _Refused("check said no")
        version = self._called("the target", self._target.swap)
        try:
            self._tell(fields)
        except _Refused:
            self._target.back()
            if (before := self._target.current()) is not None:
                self._tell(before[0])
            raise
        self.ledger.deployed(fields, version)
        self._target.finalize()

    def _tell(self, fields: About) -> None:
        if self._notify is not None:
            self._called("notify", self._notify, fields)

    def _called(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the user's function returns; what it raises becomes a reason."""
        try:
            return function(*arguments)
        except Exception as error:
            if is_transient(error):
                raise
            raise _Refused(f"{what} raised {type(error).__name__}: {error}") from error


class _Refused(DeployError):
    """The set is not fit for service."""


def _ranked(best: Selection[ParameterSet]) -> Selection[ParameterSet]:
    """The sets that have a place in the order."""
    if best.query.collection != "params" or not best.query.sort:
        raise QueryError(
            'the best set is a selection of parameters with a sort: db.params.find({"run": "r"}, '
            f'sort=[("val_acc", -1)]). Found: {best.query.brief}'
        )
    name = best.query.sort[0][0]
    # MongoDB sorts a missing field and NaN before all numbers, and text behind them.
    fit = {name: {"$type": ["number", "date", "objectId"], "$nin": _INFINITE, "$not": {"$type": "array"}}}
    whole = best.query.replace(limit=None, fields=None)
    ranked: Selection[ParameterSet] = best.db.select(whole) & fit
    return ranked
