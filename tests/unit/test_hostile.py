"""Spoiled input of every format ends as a value, or as one of our errors: `make soak-files` runs many more."""

from __future__ import annotations

from pathlib import Path

from tests.hostile import attack, formats

# A plan, a cached file and a tensor that are none are told to the one who asks.
NAMED = ("image", "sound", "window", "video", "clip", "volume", "array", "segment", "documents", "tombstone",
         "safetensors", "torch")  # fmt: skip


def test_spoiled_input_of_every_format(tmp_path: Path) -> None:
    refused = {name: attack(name, read, seeds, 200, 0) for name, (read, seeds) in formats(tmp_path).items()}
    assert all(refused[name] > 20 for name in NAMED), refused
