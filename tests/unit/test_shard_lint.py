"""What the lint of commands says of them: `make shard-lint`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.shard_lint import judged


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ({"find": "data", "filter": {"_id": 3}}, None), ({"find": "data", "filter": {"_id": {"$in": [1]}}}, None),
        ({"find": "data", "filter": {"_id": {"$gt": 3}}}, (False, "find data")),  # of a hashed key, no range
        ({"find": "tensors", "filter": {"_id": {"$gt": {"p": "x"}}}}, None),
        ({"find": "tensors", "filter": {"_id": {"p": "x", "h": 3}}}, None),
        ({"find": "data", "filter": {"dataset": "d", "_tdb.p": "p"}}, (False, "find data")),
        ({"find": "logs", "filter": {"_tdb.p": "p", "run": "r"}}, None), ({"find": "jobs", "filter": {}}, None),
        ({"find": "logs", "filter": {"_tdb.p": "p"}}, (False, "find logs")),
        ({"find": "data", "filter": {"$and": [{"_id": 3}, {"x": 1}]}}, None),
        ({"update": "data", "updates": [{"q": {"_id": 1}, "u": {}}]}, None),
        ({"update": "data", "updates": [{"q": {"x": 1}, "u": {}}]}, (True, "update data")),
        ({"update": "data", "updates": [{"q": {"x": 1}, "u": {}, "multi": True}]}, (False, "update data")),
        ({"delete": "data", "deletes": [{"q": {"x": 1}, "limit": 1}]}, (True, "delete data")),
        ({"delete": "data", "deletes": [{"q": {"x": 1}, "limit": 0}]}, (False, "delete data")),
        ({"findAndModify": "data", "query": {"x": 1}}, (True, "findAndModify data")),
        ({"aggregate": "data", "pipeline": [{"$match": {"_id": 1}}]}, None),
        ({"aggregate": "data", "pipeline": [{"$group": {"_id": 1}}]}, (False, "aggregate data")),
        ({"aggregate": "jobs", "pipeline": [{"$lookup": {"from": "tensors"}}]}, (False, "$lookup tensors")),
        ({"createIndexes": "data", "indexes": [{"key": {"x": 1}, "unique": True}]}, (True, "unique index")),
        ({"createIndexes": "data", "indexes": [{"key": {"x": 1}}]}, None),
        ({"getMore": 3, "collection": "data"}, None),
    ],
)  # fmt: skip
def test_a_command_is_judged(command: dict[str, Any], says: tuple[bool, str] | None) -> None:
    found = list(judged(command))
    assert found == [] if says is None else (found[0][1], found[0][0][: len(says[1])]) == says
