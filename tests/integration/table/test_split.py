"""Splits of samples, against a real server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import QueryError, SchemaError, TensorDB
from tensordb_data.samples import mutations
from tensordb_data.table.splits import split as split_module
from tensordb_data.table.splits.balance import balanced
from tensordb_data.table.splits.rows import SplitRows

PARTS = {"train": 0.8, "valid": 0.1, "test": 0.1}


def fill(db: TensorDB, patients: range, each: int = 5, dataset: str = "scans") -> None:
    with db.data.writer(dataset) as writer:
        writer.add_many(
            patient=[f"p{p}" for p in patients for _ in range(each)],
            label=[(p + i // 3) % 2 for p in patients for i in range(each)],
        )


def parts_of(db: TensorDB) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for sample in db.data.find({"dataset": "scans"}):
        found.setdefault(sample["patient"], set()).add(sample["split"])
    return found


def by_id(db: TensorDB) -> dict[Any, str]:
    return {sample.id: sample["split"] for sample in db.data.find({"split": {"$exists": True}})}


def test_groups_stay_whole_and_where_they_are(db: TensorDB) -> None:
    fill(db, range(200))
    scans = db.data.find({"dataset": "scans"})
    report = scans.split(PARTS, by="patient", seed=0)
    assert report.groups == 200 and report.changed == 1000 == sum(report.counts.values()) and report.strata == {}
    assert scans.value_counts("split") == dict(sorted(report.counts.items(), key=lambda item: -item[1]))
    assert report.deviation == max(abs(report.counts[part] / 1000 - share) for part, share in PARTS.items()) < 0.07
    first = parts_of(db)
    assert all(len(parts) == 1 for parts in first.values())
    assert repr(db.data.schema("scans")["split"]) == "Scalar('str', optional=True)"  # type: ignore[index]
    fill(db, range(150, 300))  # some of them are known
    again = scans.split(PARTS, by="patient")
    assert again.changed == 750 and again.groups == 300
    assert parts_of(db).items() >= first.items()
    assert scans.split(PARTS, by="patient", seed=np.int64(0)).changed == 0  # type: ignore[arg-type]
    assert scans.split(PARTS, by="patient", seed=1).changed > 100
    # The part of a group depends on nothing but its value and the seed.
    scans.split(PARTS, by="patient")
    other = TensorDB.over(db.warehouse.in_project("other"))
    fill(other, range(3, 5), each=1)
    other.data.find().split(PARTS, by="patient")
    assert parts_of(other).items() <= first.items()


def test_each_sample_by_itself(db: TensorDB) -> None:
    fill(db, range(100), each=4)
    report = db.data.find({"dataset": "scans"}).split({"a": 0.5, "b": 0.5}, field="half")
    assert report.groups == 400 and report.deviation < 0.15
    assert db.data.find({"half": "a"}).count() == report.counts["a"]
    limited = db.data.find({"dataset": "scans"}, limit=7).split({"only": 1}, field="few")
    assert (limited.counts, limited.deviation) == ({"only": 7}, 0.0) and db.data.find({"few": "only"}).count() == 7
    nothing = db.data.find({"label": 77}).split(PARTS, stratify="label")
    assert nothing == split_module.SplitReport({"train": 0, "valid": 0, "test": 0}, 0.0)


def test_strata_are_balanced_and_stay(db: TensorDB) -> None:
    with db.data.writer("scans") as writer:
        writer.add_many(label=[0] * 90 + [1] * 10)
    scans = db.data.find({"dataset": "scans"})
    report = scans.split(PARTS, stratify="label", seed=3)
    assert report.strata == {0: {"train": 72, "valid": 9, "test": 9}, 1: {"train": 8, "valid": 1, "test": 1}}
    assert report.deviation < 1e-12
    first = by_id(db)
    with db.data.writer("scans") as writer:
        writer.add_many(label=[1] * 20)
    assert scans.split(PARTS, stratify="label", seed=3).changed == 20
    assert {id: part for id, part in by_id(db).items() if id in first} == first
    assert scans.split(PARTS, stratify="label", seed=3).strata[1] == {"train": 24, "valid": 3, "test": 3}
    assert scans.split(PARTS, stratify="label", seed=4).changed > 10
    scans.split(PARTS, seed=4)
    assert db.database["datasets"].find_one({"splits.split": {"$exists": True}}) is None


def test_strata_of_whole_groups(db: TensorDB) -> None:
    fill(db, range(60))
    scans = db.data.find({"dataset": "scans"})
    report = scans.split({"train": 0.75, "test": 0.25}, by="patient", stratify="label")
    assert all(len(parts) == 1 for parts in parts_of(db).values()) and report.deviation < 0.02
    first = by_id(db)
    fill(db, range(50, 70))
    scans.split({"train": 0.75, "test": 0.25}, by="patient", stratify="label")
    assert all(len(parts) == 1 for parts in parts_of(db).values())
    assert {id: part for id, part in by_id(db).items() if id in first} == first


def test_a_split_that_is_killed_is_made_by_the_next_call(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, range(30))
    scans = db.data.find({"dataset": "scans"})
    scans.split(PARTS, by="patient", stratify="label")
    whole = by_id(db)
    scans.split(PARTS, by="patient", stratify="label", seed=1)
    monkeypatch.setattr(split_module, "LIMIT", 40)
    monkeypatch.setattr(mutations, "LIMIT", 40)
    steps: list[int] = []
    step = mutations.Mutation.step

    def killed(self: Any, items: Any, change: Any) -> int:
        if len(steps) == 1:
            raise KeyboardInterrupt
        steps.append(1)
        return step(self, items, change)

    monkeypatch.setattr(mutations.Mutation, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        scans.split(PARTS, by="patient", stratify="label")
    monkeypatch.setattr(mutations.Mutation, "step", step)
    assert by_id(db) != whole
    scans.split(PARTS, by="patient", stratify="label")
    assert by_id(db) == whole


def test_what_a_split_refuses(db: TensorDB) -> None:
    fill(db, range(4))
    scans = db.data.find({"dataset": "scans"})
    wrong: list[tuple[Mapping[str, Any], dict[str, Any], str]] = [
        ({"a": 0.5, "b": 0.4}, {}, "sum up to 1; found 0.9"),
        ({"a": 1.5}, {}, "fraction of 'a'"),
        ({"a": True}, {}, "fraction of 'a'"),
        ({}, {}, "dict of name to fraction"),
        ({"": 1}, {}, "a non-empty string"),
        ({"a": 1}, {"by": "patent"}, "did you mean 'patient'"),
        ({"a": 1}, {"stratify": "_tdb.s"}, "internal"),
        ({"a": 1}, {"field": "label", "stratify": "label"}, "another one than"),
        ({"a": 1}, {"field": "a.b"}, "another one than"),
        ({"a": 1}, {"seed": 0.5}, "seed is a whole number"),
        ({"a": 1}, {"by": "tags"}, "no 'tags'"),
    ]
    for parts, options, message in wrong:
        with pytest.raises(QueryError, match=message):
            scans.split(parts, **options)
    with pytest.raises(SchemaError, match="expected int"):
        scans.split({"a": 1}, field="label")
    with pytest.raises(SchemaError, match="'tags'"):
        scans.split({"a": 1}, field="tags")
    with pytest.raises(QueryError, match="only samples can be split"):
        db.jobs.find().split({"a": 1})
    with db.data.writer("scans") as writer:
        writer.add(patient="p", label=1, tags=["a", "b"])
    with pytest.raises(QueryError, match="with one value, and 'tags' of sample"):
        scans.split({"a": 1}, stratify="tags")
    db.data.schema("scans").evolve(site=str_field())  # type: ignore[union-attr]
    with pytest.raises(QueryError, match=r"21 of the samples have no 'site'.*\{\"site\": \{\"\$ne\": None\}\}"):
        scans.split({"a": 1}, by="site")
    assert db.data.find({"split": {"$exists": True}}).count() == 0


def str_field() -> Any:
    from tensordb_data import Scalar

    return Scalar("str", optional=True)


@settings(max_examples=200)
@given(st.data())
def test_balanced_parts_are_near_their_fractions(data: st.DataObject) -> None:
    """Of groups of one sample, no stratum and no part deviates by as much as a group for each stratum."""
    strata = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=60))
    shares = data.draw(st.sampled_from([[0.5, 0.5], [0.8, 0.1, 0.1], [0.6, 0.3, 0.1]]))
    names = sorted(set(strata))
    rows = SplitRows(
        np.arange(len(strata)), np.arange(len(strata)), np.array([names.index(s) for s in strata]),
        np.full(len(strata), -1), np.zeros(len(strata), bool), [b""] * len(strata), names, [],
    )  # fmt: skip
    hashes = data.draw(st.lists(st.floats(0, 0.99), min_size=len(strata), max_size=len(strata)))
    found = balanced(rows, hashes, shares)
    for part, share in enumerate(shares):
        assert abs((found == part).sum() - share * len(strata)) < 2
        for value in names:
            of = np.array(strata) == value
            assert abs((found[of] == part).sum() - share * of.sum()) < 2
