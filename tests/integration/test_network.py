"""The network between clients and the server fails in each of its ways, once; see `tests/long/network.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.long.network import FAULTS, run


@pytest.mark.slow
def test_nothing_is_lost_or_made_twice_on_a_bad_network(tmp_path: Path) -> None:
    assert run(len(FAULTS), 3, tmp_path) == []
