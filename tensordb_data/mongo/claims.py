"""Claims: an entity has one owner at a time, by a lease on the server's clock and a token.

A claim is a small document inside the entity, `{owner, token, since, until}`. An entity without one is free, and so is
one whose `until` has passed. All times are the server's (`$$NOW`), so that the clock of a worker may be wrong. Each
claim has a new token. Its owner writes only where this token still stands. So an owner that was taken for dead, and
lives after all, cannot overwrite what the next owner writes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from pymongo import ReturnDocument

from tensordb_data.errors import ClaimLostError, QueryError
from tensordb_data.mongo.retry import retry_while_unavailable

Document = Mapping[str, Any]
Stages = Sequence[Mapping[str, Any]]

_KEY = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True)
class Claim:
    """A claim that was granted. It ends if `renew` is not called for the length of the lease."""

    mongo: Any
    """The collection."""
    path: str
    """Where in the entity the claim stands."""
    token: ObjectId
    """Made for this claim alone."""
    document: Document
    """The entity right after it was claimed."""

    @property
    def id(self) -> Any:
        """The entity's `_id`."""
        return self.document["_id"]

    def renew(self, lease: float, *, session: Any = None) -> Document:
        """Prolongs the claim to `lease` seconds from now; returns the entity.

        Args:
            lease: The seconds.
            session: Of a transaction, which then takes place only while the claim stands.

        Raises:
            ClaimLostError: Another has claimed the entity since, or it was deleted.
        """
        return self.write([{"$set": {f"{self.path}.until": _in(lease)}}], session=session)

    def write(self, stages: Stages, *, session: Any = None, patience: float = 60.0, **condition: Any) -> Document:
        """Changes the entity, only if the claim still stands; returns it.

        Args:
            stages: An update as aggregation stages, `[{"$set": {"acc": 0.9}}]`, that does no harm when it is done
                twice. A string that is not a path of the entity needs `{"$literal": ...}`.
            session: Of a transaction, which is repeated as a whole.
            patience: Seconds for which the server may be unavailable.
            condition: Further conditions on the entity, as a filter.

        Raises:
            ClaimLostError: Another has claimed the entity since, it was deleted, or a condition does not hold.
            ConnectError: The server did not come back.
        """
        held = {"_id": self.id, f"{self.path}.token": self.token, **condition}

        def update() -> Any:
            return self.mongo.find_one_and_update(
                held, list(stages), return_document=ReturnDocument.AFTER, session=session
            )

        found = update() if session is not None else retry_while_unavailable(update, patience)
        if found is None:
            raise ClaimLostError(
                f"{self.mongo.name} {self.id}: the claim of {self._owner!r} has run out, and another has taken it over"
                " or it was deleted; what was to be written is dropped"
            )
        return found  # type: ignore[no-any-return]

    def release(self, stages: Stages = (), *, patience: float = 60.0) -> Document:
        """Ends the claim, with a last change in the same step; returns the entity. Others may claim it from now on.

        Raises:
            ClaimLostError: As for `write`; nothing was changed.
            ConnectError: As for `write`.
        """
        return self.write([*stages, {"$set": {f"{self.path}.until": "$$NOW"}}], patience=patience)

    @property
    def _owner(self) -> str:
        value: Any = self.document
        for part in self.path.split("."):
            value = value[part]
        return str(value["owner"])


def claim(
    mongo: Any,
    filter: Document,
    *,
    path: str,
    owner: str,
    lease: float,
    sort: Sequence[tuple[str, int]] | None = None,
    stages: Stages = (),
) -> Claim | None:
    """Claims one entity that matches and is free, in one atomic step of the server.

    Args:
        mongo: The pymongo collection.
        filter: Which entities; with the project in it.
        path: Where in the entity the claim stands, such as `"_tdb.claim"`, or `claim_path(name)`.
        owner: Who claims, for people to read. Two of the same name do not disturb each other: tokens count.
        lease: Seconds until others may claim it, unless it is renewed.
        sort: Which one first.
        stages: Further changes in the same step, as aggregation stages.

    Returns:
        The claim; None when there is nothing to claim.

    Raises:
        QueryError: The lease is not a positive number of seconds, or the owner no text.
        ConnectError: The server is away and did not come back.
    """
    check_owner(owner)
    token = ObjectId()
    found = retry_while_unavailable(_attempt(mongo, filter, path, owner, check_lease(lease), sort, stages, token))
    return None if found is None else Claim(mongo, path, token, found)


def _attempt(
    mongo: Any, filter: Document, path: str, owner: str, lease: float, sort: Any, stages: Stages, token: ObjectId
) -> Any:
    made = {"owner": {"$literal": owner}, "token": token, "since": "$$NOW", "until": _in(lease)}
    update = [{"$set": {path: made}}, *stages]
    attempts = 0

    def attempt() -> Any:
        nonlocal attempts
        attempts += 1
        if attempts > 1:  # the answer of an earlier one may have been lost, and the claim granted
            mine = confirmed(mongo, {f"{path}.token": token})
            if mine is not None:
                return mine
        return mongo.find_one_and_update(
            {"$and": [filter, free(path)]}, update, sort=sort, return_document=ReturnDocument.AFTER
        )

    return attempt


def confirmed(mongo: Any, filter: Document) -> Any:
    """Find the entity that an earlier write, whose answer was lost, has left in this state.

    This asks by a write that changes nothing. A read could be answered by a former primary, whose writes are rolled
    back.

    Returns:
        The entity; None if the write did not take place.
    """
    return mongo.find_one_and_update(filter, [{"$set": {"_tdb.p": "$_tdb.p"}}], return_document=ReturnDocument.AFTER)


def free(path: str) -> dict[str, Any]:
    """The filter of entities that are free to be claimed."""
    return {"$expr": {"$lte": [f"${path}.until", "$$NOW"]}}  # what is missing sorts before all times


def claim_path(name: str) -> str:
    """The path of the claims of this name, whatever characters it has; each name has claims of its own."""
    key = name if _KEY.fullmatch(name) else hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return f"_tdb.claims.{key}"


def check_owner(owner: object) -> str:
    """`owner` if it can be the name of one who claims.

    Raises:
        QueryError: It cannot.
    """
    text = isinstance(owner, str) and "\0" not in owner and owner == owner.encode(errors="replace").decode()
    if not isinstance(owner, str) or not text or not owner:
        raise QueryError(f"a claim is made by a worker with a name, a non-empty string; found {owner!r:.200}")
    return owner


def check_lease(lease: object) -> float:
    """`lease` if it is a positive number of seconds.

    Raises:
        QueryError: It is not.
    """
    if isinstance(lease, bool) or not isinstance(lease, (int, float)) or not 0.01 <= lease <= 1e7:
        raise QueryError(f"a lease is a number of seconds between 0.01 and 10,000,000; found {lease!r}")
    return float(lease)


def _in(seconds: float) -> dict[str, Any]:
    return {"$add": ["$$NOW", round(check_lease(seconds) * 1000)]}
