"""The form that a stored job must have before anything is done with it.

Whoever can write to the database can write any document. A job that is not well formed stays where it is: no worker
claims it, and it stops neither the claims nor the recovery of the others. The server checks this in the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_PUSHED = 10_000_000
"""Bytes of the document of a new job."""
_LARGEST = 11_500_000  # with its history; its result has room beside this, in a document of 16 MB

_TEXT: dict[str, Any] = {"bsonType": "string", "minLength": 1}
_DATE: dict[str, Any] = {"bsonType": "date"}
_LIST_OF_IDS: dict[str, Any] = {"bsonType": "array", "items": {"bsonType": "objectId"}}
_FIELDS: dict[str, dict[str, Any]] = {
    "_id": {"bsonType": "objectId"},
    "_tdb": {"bsonType": "object", "properties": {"needs": {"bsonType": "array", "items": _TEXT}}},
    "kind": _TEXT,
    "args": {"bsonType": "object"},
    "tags": {"bsonType": "array", "items": {**_TEXT, "pattern": "^[^\\x00]+$"}},
    "priority": {"bsonType": "number"},
    "requires": {"bsonType": "object", "additionalProperties": {"bsonType": "number", "minimum": 0}},
    "attempts": {"bsonType": "number", "minimum": 0, "maximum": 2**31},
    "max_attempts": {"bsonType": "number", "minimum": 1, "maximum": 2**31},
    "backoff": {"bsonType": "number", "minimum": 0, "maximum": 1e9},
    "events": {
        "bsonType": "array",
        "items": {"bsonType": "object", "required": ["at", "event"], "properties": {"at": _DATE, "event": _TEXT}},
    },
}
_OPTIONAL: dict[str, dict[str, Any]] = {
    "after": _LIST_OF_IDS,
    "after_any": _LIST_OF_IDS,
    "left_out": {"bsonType": "array", "items": _TEXT},
    "time_limit": {"bsonType": "number", "minimum": 0, "maximum": 1e9},
    "progress": {"bsonType": "number", "minimum": 0, "maximum": 1},
}
_OPTIONAL |= dict.fromkeys(("entry", "script", "data", "architecture", "params", "worker", "reason"), _TEXT)
_OPTIONAL |= dict.fromkeys(("created", "due", "started", "finished"), _DATE)
_ONE_PROGRAM: dict[str, Any] = {"oneOf": [{"required": ["entry"]}, {"required": ["script"]}]}
_ALL: dict[str, Any] = {**_FIELDS, **_OPTIONAL}
_SCHEMA: dict[str, Any] = {"required": list(_FIELDS), "properties": _ALL, **_ONE_PROGRAM}
_SMALL: dict[str, Any] = {"$expr": {"$lt": [{"$bsonSize": "$$ROOT"}, _LARGEST]}}

WELL_FORMED: Mapping[str, Any] = {"$and": [{"$jsonSchema": _SCHEMA}, _SMALL]}
"""The filter of jobs that are well formed."""


def malformed(mongo: Any, id: Any) -> str | None:
    """What is wrong with the form of a job, for people; None if it is well formed or not there.

    Args:
        mongo: The collection of jobs.
        id: The `_id` of the job.
    """
    if mongo.find_one({"_id": id, "$nor": [WELL_FORMED]}, {"_id": 1}) is None:
        return None
    rules = {
        "it is larger than 11.5 MB": _SMALL,
        "it needs either an entry or a script, and not both": {"$jsonSchema": _ONE_PROGRAM},
        **{f"{name!r} is missing or not of its kind": _rule(name, rule, [name]) for name, rule in _FIELDS.items()},
        **{f"{name!r} is not of its kind": _rule(name, rule, []) for name, rule in _OPTIONAL.items()},
    }
    return next((said for said, rule in rules.items() if mongo.find_one({"_id": id, "$nor": [rule]}, {"_id": 1})), None)


def _rule(name: str, rule: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {"$jsonSchema": {"properties": {name: rule}, **({"required": required} if required else {})}}
