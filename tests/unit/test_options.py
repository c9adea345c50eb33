"""Groups of options: what they refuse and in which words, and that no function hides options or takes too many."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensordb_data
from tensordb_data import (
    Built,
    CheckpointError,
    Every,
    JobLimits,
    JobSpec,
    NotAllowedError,
    Permissions,
    QueryError,
    SaveOptions,
    SchemaError,
    Selection,
    Shard,
    TensorDBError,
    Tokens,
)
from tensordb_data.common.options import OptionGroup
from tensordb_data.stream.options import BatchOptions, StreamOptions, shard_of, tokens_of, units_of

ROOT = Path(__file__).parents[2]
MOST = 13
# A command is a list of options.
FOLDERS = [folder for folder in (ROOT / "tensordb_data").iterdir() if folder.is_dir() and folder.name != "cli"]
FOLDERS += [ROOT / "integrations/torch", ROOT / "integrations/tf", ROOT / "integrations/ray"]
# Names of fields and metrics, which are free.
FREE = {"metrics", "numbers", "fields", "columns", "values", "lineage", "condition", "changes"}
# What another library calls, or is called with.
OUTSIDE = {
    **{f"integrations/torch/transformers.py:{name}": "kwargs" for name in (
        "on_train_begin", "on_epoch_begin", "on_step_begin", "on_substep_end", "on_step_end", "on_evaluate",
        "on_epoch_end", "on_train_end", "on_log",
    )},
    **{f"integrations/torch/loggers/transformers.py:{name}": "kwargs" for name in (
        "on_train_begin", "on_log", "on_train_end",
    )},
    "integrations/torch/loggers/accelerate.py:log": "kwargs",
    "integrations/torch/loggers/lightning.py:log_hyperparams": "kwargs",
    "tensordb_data/embedded/client.py:__init__": "options",
    **{f"tensordb_data/warehouse/read_only.py:{name}": "kwargs" for name in (
        "aggregate", "command", "get_collection", "with_options",
    )},
}  # fmt: skip


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    paths = [*(ROOT / "tensordb_data").glob("*.py"), *(path for folder in FOLDERS for path in folder.rglob("*.py"))]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def test_no_function_has_more_than_13_parameters() -> None:
    counted = {}
    for name, node in functions():
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        counted[name] = len([one for one in given if one is not None and one.arg not in ("self", "cls")])
    assert len(counted) > 1000
    assert {name: number for name, number in counted.items() if number > MOST} == {}


def test_no_public_function_hides_options() -> None:
    hidden = {}
    for name, node in functions():
        extra = node.args.kwarg
        private = node.name.startswith("_") and node.name != "__init__"
        if extra is None or private or extra.annotation is None or ast.unparse(extra.annotation) != "Any":
            continue
        if extra.arg not in FREE and OUTSIDE.get(name) != extra.arg:
            hidden[name] = extra.arg
    assert hidden == {}


GROUPS = [Shard, Tokens, Every, SaveOptions, JobLimits, JobSpec, Built, Permissions]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_a_frozen_value_of_named_options(group: type[OptionGroup]) -> None:
    least: dict[type[OptionGroup], dict[str, Any]] = {
        Every: {"steps": 3}, Tokens: {"pack": 8}, JobSpec: {"kind": "k", "entry": "m:f"},
        Permissions: {"scripts": True},
    }  # fmt: skip
    made = group(**least.get(group, {}))
    assert made == group(**least.get(group, {}))
    name = dataclasses.fields(group)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, None)
    with pytest.raises(TypeError, match="positional"):
        group(3)  # type: ignore[call-arg]
    assert getattr(tensordb_data, group.__name__) is group and group.__name__ in tensordb_data.__all__


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Every(), CheckpointError, r"Every\(\) needs steps=, seconds= or overhead="),
        (lambda: Every(steps=0), CheckpointError, r"Every\(steps=\) must be a number of steps, at least 1. Found: 0"),
        (lambda: Every(steps=True), CheckpointError, r"Every\(steps=\)"),
        (lambda: Every(seconds=float("inf")), CheckpointError, r"Every\(seconds=\)"),
        (lambda: Every(overhead=1.5), CheckpointError, r"Every\(overhead=\)"),
        (lambda: Every(steps=5, overhead=0.1), CheckpointError, r"Every\(steps=\) .* Every\(overhead=\) .* one of"),
        (lambda: SaveOptions(memory="much"), CheckpointError, r"SaveOptions\(memory=\)"),
        (lambda: SaveOptions(when_busy="panic"), CheckpointError, r"SaveOptions\(when_busy=\)"),
        (lambda: SaveOptions(signals="SIGTERM"), CheckpointError, r"SaveOptions\(signals=\)"),
        (lambda: SaveOptions(signals=()), CheckpointError, r"SaveOptions\(signals=\)"),
        (lambda: SaveOptions(signals=["SIGKILL"]), CheckpointError, r"SaveOptions\(signals=\).*SIGKILL"),
        (lambda: SaveOptions(grace=-1), CheckpointError, r"SaveOptions\(grace=\)"),
        (lambda: SaveOptions(architecture=3), CheckpointError, r"SaveOptions\(architecture=\)"),
        (lambda: SaveOptions(parent="r"), SchemaError, r"SaveOptions\(parent=\)"),
        (lambda: Shard(rank=1), QueryError, r"Shard\(rank=\) and Shard\(world_size=\) go together"),
        (lambda: Shard(rank=2, world_size=2), QueryError, r"Shard\(rank=\) must be below Shard\(world_size=\)"),
        (lambda: Shard(rank=-1, world_size=2), QueryError, r"Shard\(rank=\)"),
        (lambda: Shard(rank=0, world_size="2"), QueryError, r"Shard\(world_size=\)"),
        (lambda: Shard(tail="keep"), QueryError, r"Shard\(tail=\) must be one of short, drop, pad. Found: 'keep'"),
        (lambda: Shard(mesh=object()), QueryError, r"Shard\(mesh=\) is a DeviceMesh of torch. Found"),
        (lambda: Shard(group=object()), QueryError, r"Shard\(group=\) is a process group of torch, or a text"),
        (lambda: Shard(group=""), QueryError, r"Shard\(group=\) is a text that the processes share"),
        (lambda: Shard(data_dims=("dp",)), QueryError, r"Shard\(data_dims=\) names dimensions of Shard\(mesh=\)"),
        (lambda: Tokens(), QueryError, r"Tokens\(n=\) or packed by Tokens\(pack=\): give one of them. Found: neither"),
        (lambda: Tokens(n=8, pack=8), QueryError, r"give one of them. Found: both"),
        (lambda: Tokens(n=0), QueryError, r"Tokens\(n=\) must be a whole number of at least 1"),
        (lambda: Tokens(pack=True), QueryError, r"Tokens\(pack=\)"),
        (lambda: Tokens(pack=2**24), QueryError, r"Tokens\(pack=\) .* below 2\*\*24"),
        (lambda: Tokens(pack=8, window=0), QueryError, r"Tokens\(window=\)"),
        (lambda: Tokens(n=8, length=3), QueryError, r"Tokens\(length=\) is the name of a field"),
        (lambda: Tokens(n=8, long="keep"), QueryError, r"Tokens\(long=\) must be one of error, drop, cut, split"),
        (lambda: Tokens(n=8, long="cut"), QueryError, r'Tokens\(long=\) must be "error" or "drop" with Tokens\(n=\)'),
        (lambda: JobLimits(max_attempts=0), QueryError, r"JobLimits\(max_attempts=\)"),
        (lambda: JobLimits(backoff=-1), QueryError, r"JobLimits\(backoff=\)"),
        (lambda: JobLimits(time_limit=0), QueryError, r"JobLimits\(time_limit=\)"),
        (lambda: JobSpec(kind="k"), QueryError, "entry="),
        (lambda: JobSpec(kind="", entry="m:f"), QueryError, r"JobSpec\(kind=\)"),
        (lambda: JobSpec(kind="k", entry="m:f", limits=3), QueryError, r"JobSpec\(limits=\) is a JobLimits"),
        (lambda: Permissions(), QueryError, r"may=Permissions\(allow="),
        (lambda: Permissions(allow="x"), NotAllowedError, r"Permissions\(allow=\)"),
        (lambda: Permissions(allow=["x"], scripts="yes"), QueryError, r"Permissions\(scripts=\)"),
        (lambda: Built(architecture="cnn"), QueryError, r"Built\(architecture=\)"),
        (lambda: Built(allow="x"), NotAllowedError, r"Built\(allow=\)"),
        (lambda: Built(part=""), QueryError, r"Built\(part=\)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_as_it_was_written(
    make: Callable[[], object], error: type[TensorDBError], says: str
) -> None:
    with pytest.raises(error, match=says):
        make()


def test_a_changed_copy_is_checked_again() -> None:
    assert dataclasses.replace(SaveOptions(memory="4GB"), when_busy="skip").memory == "4GB"
    with pytest.raises(CheckpointError, match="when_busy"):
        dataclasses.replace(SaveOptions(), when_busy="panic")


def test_a_number_of_steps_is_short_for_every() -> None:
    assert Every.of(200) == Every(steps=200) and Every.of(Every(seconds=3)) == Every(seconds=3)
    assert Every.of(None) is None
    with pytest.raises(CheckpointError, match=r"^every= must be a number of steps, at least 1. Found: 0"):
        Every.of(0)


def test_signals_have_numbers() -> None:
    assert SaveOptions().numbers == (15, 2, 1, 10) and SaveOptions(signals=False).numbers == ()
    assert SaveOptions(signals=["SIGTERM", "SIGUSR1"]).numbers == (15, 10)


def test_the_shorthands_of_a_shard_give_the_same() -> None:
    assert shard_of({"rank": 1, "world_size": 4, "end": "drop"}) == Shard(rank=1, world_size=4, tail="drop")
    given = Shard(rank=np.int64(1), world_size=np.uint8(2))  # type: ignore[arg-type]
    assert shard_of({"shard": given}) == Shard(rank=1, world_size=2) and type(given.rank) is int
    assert shard_of({}) == shard_of({"rank": None, "shard": None}) == Shard()
    with pytest.raises(QueryError, match=r"^end= must be one of short, drop, pad"):
        shard_of({"end": "keep"})  # type: ignore[typeddict-item]
    with pytest.raises(QueryError, match=r"^rank= must be below world_size= "):
        shard_of({"rank": 3, "world_size": 2})
    with pytest.raises(QueryError, match=r"shard= is a Shard"):
        shard_of({"shard": (0, 1)})  # type: ignore[typeddict-item]
    for short in ({"rank": 0}, {"world_size": 2}, {"end": "drop"}):
        with pytest.raises(QueryError, match=rf"shard= and {next(iter(short))}= are both given: give shard=Shard\("):
            shard_of({"shard": Shard(), **short})  # type: ignore[typeddict-item]


def test_the_shorthands_of_tokens_give_the_same() -> None:
    given = tokens_of({"batch_tokens": np.int64(64), "length": "n", "long": "drop"})  # type: ignore[typeddict-item]
    assert given == Tokens(n=64, length="n", long="drop", window=8192) and type(given.n) is int
    assert tokens_of({"pack": 16}) == Tokens(pack=16, window=10_000) and tokens_of({}) is None
    with pytest.raises(QueryError, match=r"^sequences are batched by batch_tokens= or packed by pack="):
        tokens_of({"length": "n"})
    with pytest.raises(QueryError, match=r"tokens= is a Tokens"):
        tokens_of({"tokens": 64})  # type: ignore[typeddict-item]
    with pytest.raises(QueryError, match=r"tokens= and pack= are both given: give tokens=Tokens\(pack=\)"):
        tokens_of({"tokens": Tokens(n=8), "pack": 8})
    assert units_of(None, Tokens(n=8)) == 1 and units_of(4, Tokens(pack=8)) == units_of(4, None) == 4
    for size, tokens in ((4, Tokens(n=8)), (None, Tokens(pack=8)), (None, None)):
        with pytest.raises(QueryError, match="batch_size="):
            units_of(size, tokens)


def test_those_that_hand_on_options_of_a_stream_have_all_of_them() -> None:
    own = inspect.signature(Selection.stream).parameters
    named = {name for name, one in own.items() if one.kind is not one.VAR_KEYWORD} - {"self", "batch_size"}
    assert named | set(BatchOptions.__annotations__) == set(StreamOptions.__annotations__)
