"""A training of sixteen ranks in virtual time, elastic, with failures: each sample once in each pass."""

from __future__ import annotations

from pathlib import Path

from tests.simulated.training import Stage, Training


def test_each_pass_has_each_sample_once_with_other_ranks_and_failures(tmp_path: Path) -> None:
    training = Training(tmp_path, hosts=2, n=1500, batch_size=16, workers=2, cache_bytes=600_000, seed=1)
    training.database.failing, training.store.failing = [(0.9, 2.9)], [(2.0, 6.0)]
    training.run([Stage(16, 7, killed_at=5, growths=3), Stage(12, 11, growths=3), Stage(16, 9, growths=3)])
    assert training.check() >= 2
    assert training.restarts >= 1 and training.database.failed and training.store.failed
    assert training.hits and training.store.nbytes
