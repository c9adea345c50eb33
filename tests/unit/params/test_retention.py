"""Keep: which sets stay, for any documents of a run."""

from __future__ import annotations

import math

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data import Keep
from tensordb_data.errors import CheckpointError

_metric = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, math.nan, 3]), st.just("text"), st.booleans())


@st.composite
def runs(draw):
    return [
        {
            "_id": ObjectId(),
            "step": draw(st.one_of(st.none(), st.integers(0, 50))),
            "tags": draw(st.lists(st.sampled_from(["a", "b"]), unique=True)),
            "acc": draw(_metric),
            "_tdb": {"s": number, "parts": draw(st.sampled_from([["model"], ["model", "training"]]))},
        }
        for number in range(draw(st.integers(0, 12)))
    ]


_keeps = st.builds(
    Keep,
    last=st.integers(0, 4),
    best=st.one_of(st.none(), st.tuples(st.just("acc"), st.integers(1, 3), st.sampled_from(["min", "max"]))),
    every=st.one_of(st.none(), st.integers(1, 20)),
    tagged=st.sampled_from(["a", (), ("a", "b")]),
)


@given(runs(), _keeps, st.randoms())
def test_what_stays(sets, keep, random):
    kept = keep.kept(sets)
    shuffled = random.sample(sets, len(sets))
    assert {id: sorted(rules) for id, rules in keep.kept(shuffled).items()} == {
        id: sorted(rules) for id, rules in kept.items()
    }
    by = {each["_id"]: each for each in sets}
    gone = [each for each in sets if each["_id"] not in kept]
    states = [each for each in sets if "training" in each["_tdb"]["parts"]]
    for found in (sets, states):  # what a run continues from
        assert not found or found[-1]["_id"] in kept
    assert {each["_id"] for each in sets[len(sets) - keep.last :]} <= set(kept) if keep.last <= len(sets) else not gone
    assert not any(set(each["tags"]) & set(keep.tags) for each in gone)
    if keep.best:
        sign = -1 if keep.best[2] == "min" else 1
        chosen = [sign * by[id]["acc"] for id, rules in kept.items() if "best" in rules]
        others = [
            sign * each["acc"]
            for each in sets
            if isinstance(each["acc"], (int, float)) and not isinstance(each["acc"], bool)
            and not math.isnan(each["acc"]) and "best" not in kept.get(each["_id"], ())
        ]  # fmt: skip
        assert len(chosen) == min(keep.best[1], len(chosen) + len(others))
        assert not others or not chosen or max(others) <= min(chosen)
    if keep.every:
        reached = {each["step"] // keep.every for each in sets if each["step"] is not None} - {0}
        assert reached == {by[id]["step"] // keep.every for id, rules in kept.items() if "every" in rules}


@given(runs(), _keeps)
def test_pruning_at_each_save_is_pruning_once_but_for_last(sets, keep):
    """What is dropped early would not have been kept later: no rule takes back what it has given up."""
    left: list = []
    for each in sets:
        left.append(each)
        kept = keep.kept(left)
        left = [one for one in left if one["_id"] in kept]
    once = keep.kept(sets)
    steps = [each["step"] for each in sets if each["step"] is not None]
    if keep.every is None or steps == sorted(set(steps)):
        assert {id for id, rules in once.items() if set(rules) - {"every"}} <= {each["_id"] for each in left}
        assert keep.kept(left) == {each["_id"]: once[each["_id"]] for each in left}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last": -1}, "0 or more. Found: -1"),
        ({"last": True}, "Found: True"),
        ({"every": 0}, "at least 1. Found: 0"),
        ({"best": "val_acc"}, "metric and a number"),
        ({"best": ("val_acc", 0)}, "metric and a number"),
        ({"best": ("val_acc", 1, "up")}, "metric and a number"),
        ({"best": ("val_loss", 2)}, r"Write \('val_loss', 2, 'min'\)"),
        ({"tagged": [3]}, "a tag or a list of tags"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(CheckpointError, match=message):
        Keep(**arguments)
