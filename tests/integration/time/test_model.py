"""Random histories of writes, updates, tags, deletes, freezes and restores, against a model in plain Python."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Scalar, TensorDB
from tests.integration.time.test_diff import small_chunks

SCHEMA = {
    "image": Array("uint8", (3,)), "label": Scalar("int"), "name": Scalar("str", optional=True),
    "meta": Scalar("json", optional=True),
}  # fmt: skip
NUMBERS = itertools.count()
VALUES = {
    "label": st.integers(0, 3), "name": st.sampled_from(["a", "b", "größe"]),
    "meta": st.sampled_from([[1, {"a": None}], {"x": 1.5}, "text", 0, 0.0, False]),
}  # fmt: skip
WHICH = st.integers(0, 3)
OPERATION = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 6), st.booleans()),
    st.sampled_from(["label", "name", "meta"]).flatmap(
        lambda field: st.tuples(st.just("set"), WHICH, st.just(field), VALUES[field])
    ),
    st.tuples(st.just("unset"), WHICH, st.sampled_from(["name", "meta"])),
    st.tuples(st.sampled_from(["tag", "untag"]), WHICH, st.sampled_from(["s", "t"])),
    st.tuples(st.just("delete"), WHICH),
    st.tuples(st.just("keep house")),
    st.tuples(st.just("rename")),
    st.tuples(st.just("freeze"), st.sampled_from(["all", "some", "sorted", "first"])),
    st.tuples(st.just("restore"), st.integers(0, 5), st.sampled_from([None, ["label"], ["name", "tags"], ["meta"]])),
)
Row = dict[str, Any]


class Model:
    """The samples of one dataset, in the order of commits; and what was frozen of them."""

    def __init__(self, db: TensorDB) -> None:
        self.db, self.dataset = db, f"d{next(NUMBERS)}"
        self.rows: dict[ObjectId, Row] = {}
        self.frozen: list[tuple[str, dict[ObjectId, Row]]] = []

    def find(self, label: int | None = None, **options: Any) -> Any:
        filter = {"dataset": self.dataset} | ({} if label is None else {"label": label})
        return self.db.data.find(filter, **options)

    def having(self, label: int) -> list[Row]:
        return [row for row in self.rows.values() if row["label"] == label]

    def write(self, count: int, live: bool) -> None:
        with self.db.data.writer(self.dataset, schema=SCHEMA, live=live) as writer:
            for number in range(count):
                row: Row = {"image": [next(NUMBERS) % 256] * 3, "label": number % 4}
                row |= {"name": "a"} if number % 2 else {}
                id = writer.add(**{**row, "image": np.array(row["image"], np.uint8)})
                self.rows[id] = {**row, "tags": []}

    def set(self, label: int, field: str, value: Any) -> None:
        self.find(label).update({"$set": {field: value}})
        for row in self.having(label):
            row[field] = copy.deepcopy(value)

    def unset(self, label: int, field: str) -> None:
        self.find(label).update({"$unset": {field: 1}})
        for row in self.having(label):
            row.pop(field, None)

    def tag(self, label: int, tag: str) -> None:
        self.find(label).tag(tag)
        for row in self.having(label):
            row["tags"] = [*row["tags"], *([] if tag in row["tags"] else [tag])]

    def untag(self, label: int, tag: str) -> None:
        self.find(label).untag(tag)
        for row in self.having(label):
            row["tags"] = [each for each in row["tags"] if each != tag]

    def delete(self, label: int) -> None:
        self.find(label).delete()
        self.rows = {id: row for id, row in self.rows.items() if row["label"] != label}

    def keep_house(self) -> None:
        self.db.data.compact(self.dataset)
        self.db.gc(grace=0)

    def rename(self) -> None:
        new = f"d{next(NUMBERS)}"
        self.db.data.rename(self.dataset, new)
        self.dataset = new

    def freeze(self, how: str) -> None:
        rows = list(self.rows.items())
        options: dict[str, Any] = {}
        if how == "some":
            rows, options = [(id, row) for id, row in rows if row["label"] == 1], {"label": 1}
        elif how == "sorted":
            options = {"sort": [("label", -1), ("_id", 1)]}
            rows.sort(key=lambda item: (-item[1]["label"], item[0]))
        elif how == "first":
            rows, options = rows[:3], {"limit": 3}
        name = f"{self.dataset} {len(self.frozen)}"
        self.find(**options).freeze(name)
        self.frozen.append((name, copy.deepcopy(dict(rows))))

    def restore(self, which: int, fields: list[str] | None) -> None:
        if not self.frozen:
            return
        name, then = self.frozen[which % len(self.frozen)]
        self.db.data.frozen(name).restore(fields)
        for id in then.keys() & self.rows.keys():
            for field in fields or ["label", "name", "meta", "tags"]:
                self.rows[id].pop(field, None)
                if field in then[id]:
                    self.rows[id][field] = copy.deepcopy(then[id][field])

    def check(self) -> None:
        assert read(self.find()) == list(self.rows.items())
        for name, rows in self.frozen:
            frozen = self.db.data.frozen(name)
            assert read(frozen) == list(rows.items())
            labels = [n for b in frozen.stream(batch_size=4, passes=1, fields=["label"]) for n in b["label"].tolist()]
            assert labels == [row["label"] for row in rows.values()]
        states = [*self.frozen, (self.find(), self.rows)]
        for (old, before), (new, after) in itertools.pairwise(states):
            found = self.db.data.diff(old, new)
            assert found.added.ids == [one.id for one in found.added] == [id for id in after if id not in before]
            assert found.removed.ids == [id for id in before if id not in after]
            expected = {id: changes(before[id], row) for id, row in after.items() if id in before}
            assert {c.id: dict(c) for c in found.changed} == {id: each for id, each in expected.items() if each}
            assert len(found.changed) == sum(map(bool, expected.values()))


def changes(old: Row, new: Row) -> dict[str, tuple[Any, Any]]:
    both = {name: (old.get(name), new.get(name)) for name in (*old, *new)}
    return {name: pair for name, pair in both.items() if exact(pair[0]) != exact(pair[1])}


def exact(value: Any) -> str:
    return repr(value)  # 0, 0.0 and False are three values


def read(selection: Any) -> list[tuple[ObjectId, Row]]:
    found = []
    for sample in selection:
        row = {name: sample[name] for name in sample if name not in ("_id", "dataset")}
        found.append((sample.id, {**row, "image": row["image"].tolist()}))
    return found


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=st.lists(OPERATION, min_size=4, max_size=14))
def test_every_frozen_set_and_diff_is_that_of_the_model(
    db: TensorDB, monkeypatch: pytest.MonkeyPatch, history: list[tuple[Any, ...]]
) -> None:
    with monkeypatch.context() as patch:
        small_chunks(patch)
        model = Model(db)
        model.write(9, False)
        for name, *arguments in history:
            getattr(model, name.replace(" ", "_"))(*arguments)
        model.freeze("all")
        model.keep_house()
        model.check()
