"""A sort by a metric ranges over numbers: sets without one, or with NaN, are never the best."""

from __future__ import annotations

import math

import pytest


@pytest.fixture
def sets(db):
    values = {"low": 0.1, "nan": math.nan, "none": None, "whole": 2, "text": "n/a", "high": 7.5, "inf": math.inf}
    for name, loss in values.items():
        metrics = {} if loss is None else {"loss": loss}
        db.params.save({"w": [1]}, run="r", tags=[name], **metrics)
    db.params.save({"w": [1]}, run="other", loss=-1.0)
    return db.params


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ([("loss", 1)], ["low", "whole", "high", "inf", "text"]),
        ([("loss", -1)], ["inf", "high", "whole", "low", "text"]),
        ("loss", ["low", "whole", "high", "inf", "text"]),
        ([("run", 1), ("loss", -1)], ["inf", "high", "whole", "low", "text"]),
    ],
)
def test_numbers_come_first_in_both_directions(sets, sort, order):
    found = sets.find({"run": "r"}, sort=sort)
    names = [one["tags"][0] for one in found]
    assert names[:5] == order and set(names[5:]) == {"nan", "none"}
    assert names == [one["tags"][0] for one in found.all()] and found.count() == 7
    assert found.first()["tags"] == order[:1]
    assert [one["tags"][0] for one in sets.find({"run": "r"}, sort=sort, limit=3, fields=["loss"])] == order[:3]


def test_what_is_deleted_is_what_is_listed(sets):
    worst = sets.find({"run": "r"}, sort=[("loss", -1)], limit=2)
    assert worst.delete() == 2
    assert {one["tags"][0] for one in sets.find({"run": "r"})} == {"low", "nan", "none", "whole", "text"}
