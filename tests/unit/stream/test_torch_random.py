"""Draws from PyTorch's own generator that depend on a key alone, and leave that generator as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributions
from torch.nn import functional

from tensordb_data.stream.transform.libraries.torch_random import KeyedRandom

HALF = torch.full((40,), 0.5)
DRAWS: dict[str, Callable[[], Any]] = {
    "rand": lambda: torch.rand(3),
    "rand_like": lambda: torch.rand_like(HALF),
    "randn_like": lambda: torch.randn_like(HALF, dtype=torch.float64),
    "randint": lambda: torch.randint(10**9, (1,)).item(),
    "randint_like": lambda: torch.randint_like(HALF, 5, high=10**6),
    "randperm": lambda: torch.randperm(50),
    "normal": lambda: torch.normal(HALF, 1.0),
    "multinomial": lambda: torch.multinomial(torch.ones(90), 5),
    "in place": lambda: torch.empty(3).uniform_(2, 3),
    "Beta": lambda: distributions.Beta(0.5, 0.5).rsample((3,)),
    "Bernoulli": lambda: distributions.Bernoulli(0.5).sample((40,)),
    "dropout": lambda: functional.dropout(HALF),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_depends_on_the_key_alone(draw: Callable[[], Any]) -> None:
    def drawn(key: int) -> torch.Tensor:
        with KeyedRandom(key):
            return torch.as_tensor(draw())

    before = torch.get_rng_state()
    first = drawn(2**64 - 1)
    assert torch.equal(first, drawn(2**64 - 1)) and not torch.equal(first, drawn(7))
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_that_is_given_is_used_and_other_threads_are_left_alone() -> None:
    with KeyedRandom(1):
        mine = torch.rand(3, generator=torch.Generator().manual_seed(5))
        elsewhere: list[torch.Tensor] = []
        torch.manual_seed(3)
        thread = threading.Thread(target=lambda: elsewhere.append(torch.rand(3)))
        thread.start()
        thread.join()
    assert torch.equal(mine, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    torch.manual_seed(3)
    assert torch.equal(elsewhere[0], torch.rand(3))
