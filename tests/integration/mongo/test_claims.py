"""Claims: one owner at a time, on the server's clock, and a stale owner writes nothing."""

from __future__ import annotations

import threading

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from tensordb_data.errors import ClaimLostError, ConnectError, QueryError
from tensordb_data.mongo.claims import Claim, claim, claim_path
from tensordb_data.mongo.retry import retry_while_unavailable

PATH = "_tdb.claims.x"
OVER = [{"$set": {f"{PATH}.until": {"$subtract": ["$$NOW", 1]}}}]


@pytest.fixture
def mongo(db):
    return db.database["params"]


def take(mongo, owner="w", filter=None, lease=1000.0, **more):
    return claim(mongo, filter or {}, path=PATH, owner=owner, lease=lease, **more)


def test_one_at_a_time_in_order_and_until_released(mongo):
    mongo.insert_many([{"_id": i, "p": i % 2} for i in range(4)])
    taken = [take(mongo, sort=[("p", -1), ("_id", 1)]) for _ in range(5)]
    assert [found and found.id for found in taken] == [1, 3, 0, 2, None]
    done = taken[1].release([{"$set": {"acc": 0.5}}])
    assert done["acc"] == 0.5 and take(mongo).id == 3
    assert take(mongo, filter={"_id": 9}) is None


def test_a_successor_fences_off_a_stale_owner(mongo):
    mongo.insert_one({"_id": 1})
    stale = take(mongo, "slow")
    stale.write(OVER)
    stale.write([{"$set": {"a": 1}}])  # late, but nobody else has come
    stale.write(OVER)
    successor = take(mongo, "next")
    assert successor.token != stale.token
    for attempt in (lambda: stale.write([{"$set": {"a": 2}}]), lambda: stale.renew(5), stale.release):
        with pytest.raises(ClaimLostError, match="claim of 'slow' has run out"):
            attempt()
    assert successor.renew(5)["a"] == 1
    assert take(mongo) is None
    mongo.delete_one({"_id": 1})
    with pytest.raises(ClaimLostError, match="deleted"):
        successor.renew(5)


def test_times_are_those_of_the_server(mongo, monkeypatch):
    mongo.insert_one({"_id": 1})
    monkeypatch.setattr("time.time", lambda: 0.0)  # a worker whose clock is half a century late
    held = take(mongo, lease=3600)
    stands = held.document["_tdb"]["claims"]["x"]
    assert (stands["until"] - stands["since"]).total_seconds() == 3600
    now = mongo.database.command("hello")["localTime"]
    assert abs((now - stands["since"]).total_seconds()) < 60
    assert take(mongo) is None


def test_many_at_once_never_share(mongo):
    mongo.insert_many([{"_id": i} for i in range(200)])
    mine: dict[int, list[int]] = {i: [] for i in range(6)}

    def work(i: int) -> None:
        while (found := take(mongo, "same name")) is not None:
            mine[i].append(found.id)

    threads = [threading.Thread(target=work, args=(i,)) for i in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(id for ids in mine.values() for id in ids) == list(range(200))


def test_names_apart_and_odd_owners(mongo):
    mongo.insert_one({"_id": 1})
    paths = {claim_path(name) for name in ("acc", "acc on test v2.1", "$acc", "äcc", "x" * 500)}
    assert len(paths) == 5 and all(path.startswith("_tdb.claims.") for path in paths)
    for path in paths:
        found = claim(mongo, {}, path=path, owner="$$ROOT.a", lease=5)
        assert found is not None and found._owner == "$$ROOT.a"
    for owner, lease in (("", 5), (None, 5), ("w", 0), ("w", float("nan")), ("w", True), ("w", "60")):
        with pytest.raises(QueryError):
            claim(mongo, {}, path=PATH, owner=owner, lease=lease)


class Lossy:
    """A collection whose first answers get lost after the server has acted."""

    def __init__(self, mongo, losses):
        self._mongo, self.name, self.losses = mongo, mongo.name, losses

    def __getattr__(self, name):
        method = getattr(self._mongo, name)

        def call(*args, **kwargs):
            result = method(*args, **kwargs)
            if name == "find_one_and_update" and self.losses:
                self.losses -= 1
                raise AutoReconnect("connection closed")
            return result

        return call


def test_a_lost_answer_loses_no_claim_and_no_write(mongo):
    mongo.insert_many([{"_id": 1}, {"_id": 2}])
    lossy = Lossy(mongo, 1)
    held = take(lossy, sort=[("_id", 1)])
    assert held.id == 1 and mongo.count_documents({PATH: {"$exists": True}}) == 1
    lossy.losses = 2
    assert held.release([{"$set": {"acc": 1}}])["acc"] == 1


def test_a_server_that_stays_away_is_told(mongo):
    def down():
        raise AutoReconnect("connection refused")

    with pytest.raises(ConnectError, match="did not come back in 0 s: connection refused"):
        retry_while_unavailable(down, 0)
    held = Claim(mongo, PATH, ObjectId(), {"_id": 1, "_tdb": {"claims": {"x": {"owner": "w"}}}})
    with pytest.raises(ClaimLostError):
        held.renew(1)
