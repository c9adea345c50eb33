"""Prune a run: delete the sets that its keep-policy does not keep. A later gc removes their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.html import Report
from tensordb_data.errors import CheckpointError, NotFoundError
from tensordb_data.params.retention import Keep
from tensordb_data.warehouse.deletion_log import delete_with_tombstone

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


@dataclass
class Pruned(Report):
    """What a prune did, or would do in a dry run."""

    run: str
    kept: dict[ObjectId, list[str]] = field(default_factory=dict)
    """The checkpoints that stay, oldest first, and the rules that keep each of them."""
    deleted: list[ObjectId] = field(default_factory=list)
    """The checkpoints that were deleted, oldest first."""
    bytes: int = 0
    """Bytes of the tensors of deleted checkpoints, including those that others share."""


def prune(warehouse: Warehouse, run: str, keep: Keep, *, dry_run: bool = False, training: bool = False) -> Pruned:
    """Delete the sets of a run that `keep` does not keep.

    Args:
        warehouse: The warehouse.
        run: The run.
        keep: The policy.
        dry_run: Delete nothing.
        training: Look at the training states of the run only, not at sets that were saved by hand.

    Raises:
        NotFoundError: The run has no sets.
        CheckpointError: `keep` is not a policy.
    """
    if not isinstance(keep, Keep):
        raise CheckpointError(f"expected a policy, Keep(last=3) say; found a {type(keep).__name__}")
    fields = {"step": 1, "tags": 1, "_tdb.s": 1, "_tdb.parts": 1, "_tdb.bytes": 1, "_tdb.structure": 1,
              "_tdb.line": 1}  # fmt: skip
    if keep.metric is not None:
        fields[keep.metric] = 1
    scope: dict[str, Any] = {
        "_tdb.p": warehouse.project,
        "run": run,
        **({"_tdb.parts": "training"} if training else {}),
    }
    params = warehouse.index["params"]
    sets = sorted(params.find(scope, fields), key=lambda each: (each["_tdb"]["s"], each["_id"]))
    if not sets and not training:
        raise NotFoundError(f"run {run!r} has no parameter sets in project {warehouse.project!r}")
    rules = keep.kept(sets)
    report = Pruned(run, {each["_id"]: rules[each["_id"]] for each in sets if each["_id"] in rules})
    chosen = [each for each in sets if each["_id"] not in rules]

    def delete_ids(ids: Sequence[ObjectId]) -> int:
        wanted = set(ids)
        deleted = [
            each
            for each in chosen
            if each["_id"] in wanted and (dry_run or params.delete_one(_unchanged(each, keep)).deleted_count)
        ]
        report.deleted += [each["_id"] for each in deleted]
        report.bytes += sum(int(each["_tdb"]["bytes"]) for each in deleted)
        return len(deleted)

    if dry_run or not warehouse.index.is_server:
        delete_ids([each["_id"] for each in chosen])
    elif chosen:
        delete_with_tombstone(warehouse, "params", chosen, delete_ids)
    return report


def _unchanged(document: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    """The set, as long as nobody has tagged it or attached the metric since the decision."""
    names = ["tags"] if keep.metric is None else ["tags", keep.metric]
    return {"_id": document["_id"], **{name: document.get(name, {"$exists": False}) for name in names}}
