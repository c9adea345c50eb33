from __future__ import annotations

import copy
from typing import Any

import pytest
import torch.multiprocessing as mp

from tensordb_data.errors import StateError
from tensordb_data.torch.shared_state import SharedState


def _serve(shared_state: SharedState, asked: Any, answers: Any) -> None:
    while asked.get():
        answers.put((shared_state.version, shared_state.read()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_running_process_reads_what_the_parent_posts(method: str) -> None:
    context = mp.get_context(method)
    shared_state, asked, answers = SharedState(), context.SimpleQueue(), context.SimpleQueue()
    shared_state.share()
    reader = context.Process(target=_serve, args=(shared_state, asked, answers))
    reader.start()
    for number in (1, 2):
        shared_state.post({"pass": number, "name": "é" * number})
        asked.put(True)
        assert answers.get() == (number, {"pass": number, "name": "é" * number})
    asked.put(False)
    reader.join()
    assert reader.exitcode == 0


def test_a_shorter_document_replaces_a_longer_one() -> None:
    shared_state = SharedState()
    shared_state.post({"text": "x" * 1000})
    shared_state.post({})
    assert shared_state.read() == {}


def test_a_copy_is_shared_with_its_own_workers() -> None:
    shared_state = copy.deepcopy(SharedState())
    shared_state.share()
    assert shared_state._head.is_shared() and shared_state._body.is_shared()


def test_a_document_that_is_too_long_is_refused() -> None:
    with pytest.raises(StateError, match="too long for the workers: 70"):
        SharedState().post({"text": "x" * 70_000})
