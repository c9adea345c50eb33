from __future__ import annotations

import copy
from typing import Any

import pytest
import torch.multiprocessing as mp

from tensordb_data.errors import StateError
from tensordb_data.torch.shared_state import Mailbox


def _serve(mailbox: Mailbox, asked: Any, answers: Any) -> None:
    while asked.get():
        answers.put((mailbox.version, mailbox.read()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_running_process_reads_what_the_parent_posts(method: str) -> None:
    context = mp.get_context(method)
    mailbox, asked, answers = Mailbox(), context.SimpleQueue(), context.SimpleQueue()
    reader = context.Process(target=_serve, args=(mailbox, asked, answers))
    reader.start()
    for number in (1, 2):
        mailbox.post({"pass": number, "name": "é" * number})
        asked.put(True)
        assert answers.get() == (number, {"pass": number, "name": "é" * number})
    asked.put(False)
    reader.join()
    assert reader.exitcode == 0


def test_a_shorter_document_replaces_a_longer_one() -> None:
    mailbox = Mailbox()
    mailbox.post({"text": "x" * 1000})
    mailbox.post({})
    assert mailbox.read() == {}


def test_a_copy_is_shared_with_its_own_workers() -> None:
    mailbox = copy.deepcopy(Mailbox())
    assert mailbox._head.is_shared() and mailbox._body.is_shared()


def test_a_document_that_is_too_long_is_refused() -> None:
    with pytest.raises(StateError, match="too long for the workers: 70"):
        Mailbox().post({"text": "x" * 70_000})
