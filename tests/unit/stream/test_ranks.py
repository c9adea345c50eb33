"""Who shares a stream: what the user says, what runs, and what divides it above; contradictions are errors."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import mongomock
import numpy as np
import pytest

from tensordb_data import NotAllowedError, QueryError, Shard, TensorDB
from tensordb_data.common.boards import READ_ONLY, JaxBoard, NamedBoard, StoreBoard
from tensordb_data.stream.passes.registry import SharedPassRegistry
from tensordb_data.stream.ranks import Divider, Members, find_members


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


class Mesh:
    """A device mesh, as the process sees it that is at `place`."""

    def __init__(self, names: tuple[str, ...], shape: tuple[int, ...], place: tuple[int, ...]) -> None:
        self.mesh_dim_names, self._shape, self._place, self.ndim = names, shape, place, len(shape)

    def size(self, dim: int | None = None) -> int:
        return int(np.prod(self._shape)) if dim is None else self._shape[dim]

    def get_local_rank(self, dim: int) -> int:
        return self._place[dim]

    def get_coordinate(self) -> tuple[int, ...]:
        return self._place


@pytest.mark.parametrize(
    ("names", "shape", "place", "dims", "rank", "world"),
    [
        (("dp", "tp"), (4, 2), (3, 1), None, 3, 4),
        (("dp_replicate", "dp_shard", "cp", "tp"), (2, 3, 2, 2), (1, 2, 1, 0), None, 5, 6),
        (("pp", "fsdp"), (2, 4), (1, 2), None, 2, 4),
        (("tp",), (8,), (5,), None, 0, 1),
        (("rows", "columns"), (2, 4), (1, 3), ("columns",), 3, 4),
        ((), (4,), (2,), None, 2, 4),
    ],
)
def test_ranks_of_a_mesh_are_those_of_its_data_dimensions(
    names: Any, shape: Any, place: Any, dims: Any, rank: int, world: int
) -> None:
    members = find_members(Shard(mesh=Mesh(names, shape, place), data_dims=dims))
    assert (members.rank, members.world_size, members.peers) == (rank, world, True)


def test_a_mesh_of_unknown_dimensions_is_asked_about() -> None:
    with pytest.raises(QueryError, match=r"a dimension 'rows', .* name those that do, Shard\(mesh=, data_dims="):
        find_members(Shard(mesh=Mesh(("rows", "tp"), (2, 2), (0, 0))))
    with pytest.raises(QueryError, match=r"Shard\(data_dims=\) names 'x'"):
        find_members(Shard(mesh=Mesh(("dp",), (2,), (0,)), data_dims=("x",)))
    with pytest.raises(QueryError, match="need names"):
        find_members(Shard(mesh=Mesh((), (2, 2), (0, 0))))
    with pytest.raises(QueryError, match=r"Shard\(mesh=\) says it all: leave Shard\(rank=\) out"):
        Shard(mesh=Mesh(("dp",), (2,), (0,)), rank=0, world_size=2)


def test_an_environment_of_several_processes_that_nothing_tells_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_members(Shard()).world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(QueryError, match=r"WORLD_SIZE=2 .* each process would deliver all samples. Begin to iterate"):
        find_members(Shard())
    assert find_members(Shard(rank=0, world_size=1)).peers is False
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_members(Shard()).world_size == 1


def test_what_is_divided_above_is_not_divided_below() -> None:
    for everywhere in (False, True):
        divider = Divider("Something", everywhere)
        with pytest.raises(
            QueryError, match=r"Something divides .* rank=1, world_size=2 .* leave rank= and world_size="
        ):
            find_members(Shard(rank=1, world_size=2), divider)
        assert find_members(Shard(rank=0, world_size=1), divider).world_size == 1
        assert find_members(Shard(), divider).world_size == 1


class Client:
    """The keys and values of JAX's coordination service."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        if key in self.values:
            raise RuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        return self.values[key]


def test_processes_of_jax_are_ranks_if_it_is_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    running, client = [False], Client()
    jax = SimpleNamespace(
        distributed=SimpleNamespace(is_initialized=lambda: running[0]),
        process_index=lambda: 2, process_count=lambda: 4,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "jax", jax)  # type: ignore[arg-type]
    internal = SimpleNamespace(global_state=SimpleNamespace(client=client))
    monkeypatch.setitem(sys.modules, "jax._src.distributed", internal)  # type: ignore[arg-type]
    assert find_members(Shard()).world_size == 1
    running[0] = True
    members = find_members(Shard())
    assert (members.rank, members.world_size, members.peers) == (2, 4, True)
    assert members.board is not None and members.board.agree("k", "mine") == "mine"
    assert JaxBoard(client).agree("k", "other") == "mine"
    named = find_members(Shard(group="run-17"))
    assert (named.rank, named.world_size) == (2, 4) and isinstance(named.board, NamedBoard)


def test_ranks_that_share_a_name_agree_on_each_pass_while_data_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:

        def add(low: int, high: int) -> None:
            with db.data.writer("d") as writer:
                writer.add_many(number=np.arange(low, high))

        def rank(number: int, group: str) -> Any:
            # Each rank is a process, which counts the streams of a name for itself.
            monkeypatch.setattr("tensordb_data.common.boards._of_names", {})
            shard = Shard(rank=number, world_size=2, group=group)
            stream = db.data.find({"dataset": "d"}).stream(4, shuffle=True, passes=1, shard=shard, fields=["number"])
            return iter(stream)

        add(0, 16)
        first = [number for batch in rank(0, "run-17") for number in batch["number"]]
        add(16, 24)
        second = [number for batch in rank(1, "run-17") for number in batch["number"]]
        assert sorted(first + second) == list(range(16))
        other = [number for which in (0, 1) for batch in rank(which, "run-18") for number in batch["number"]]
        assert sorted(other) == list(range(24))


@pytest.mark.parametrize("carries", [True, False])
def test_ranks_that_may_not_write_take_the_data_of_the_first_if_it_can_tell_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, carries: bool
) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        client = Client()

        def add(low: int, high: int) -> None:
            with db.data.writer("d") as writer:
                writer.add_many(number=np.arange(low, high))

        def rank(number: int) -> list[int]:
            members = Members(number, 2, True, JaxBoard(client) if carries else NamedBoard("run-17"))
            monkeypatch.setattr("tensordb_data.stream.ranks._running", lambda: members)
            stream = db.data.find({"dataset": "d"}).stream(4, shuffle=True, passes=1, fields=["number"])
            return [label for batch in stream for label in batch["number"].tolist()]

        monkeypatch.setattr(SharedPassRegistry, "is_writable", lambda self: False)
        add(0, 16)
        first = rank(0)
        add(16, 24)
        assert (sorted(first + rank(1)) == list(range(16))) is carries
        assert ("cannot agree" in caplog.text) is not carries


def test_a_rank_that_may_not_write_beside_those_that_may_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        client = Client()
        with db.data.writer("d") as writer:
            writer.add_many(number=np.arange(16))
        for number in (0, 1):
            members = Members(number, 2, True, JaxBoard(client))
            monkeypatch.setattr("tensordb_data.stream.ranks._running", lambda found=members: found)
            batches = db.data.find({"dataset": "d"}).stream(4, shuffle=True)
            if number == 0:
                next(iter(batches))
            else:
                monkeypatch.setattr(SharedPassRegistry, "is_writable", lambda self: False)
                with pytest.raises(NotAllowedError, match="give all ranks the same user"):
                    next(iter(batches))


def test_a_store_keeps_what_came_first() -> None:
    dist = pytest.importorskip("torch.distributed")
    store = dist.HashStore()
    one, two = StoreBoard(store), StoreBoard(store)
    assert one.agree("k", READ_ONLY) == two.agree("k", "token") == READ_ONLY
    assert [one.arrive("a"), two.arrive("a")] == [1, 2] and [one.number("n"), one.number("n"), two.number("n")] == [
        0,
        1,
        0,
    ]


def test_a_group_needs_numbers() -> None:
    with pytest.raises(
        QueryError, match=r"neither torch.distributed nor jax.distributed .* Shard\(rank=, world_size=, group="
    ):
        find_members(Shard(group="run-17"))
    with pytest.raises(QueryError, match=r"Shard\(group=\) has ranks of its own"):
        Shard(group=SimpleNamespace(size=lambda: 2), rank=0, world_size=2)


def test_ranks_that_know_nothing_of_each_other_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        with db.data.writer("d") as writer:
            writer.add_many(number=np.arange(16))
        next(iter(db.data.find({"dataset": "d"}).stream(4, shuffle=True, rank=0, world_size=2)))
    assert "rank 0 of 2 cannot agree with the others" in caplog.text and "Shard(group=)" in caplog.text
