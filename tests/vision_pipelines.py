"""Transforms of torchvision that worker processes import, for tests."""

from __future__ import annotations

import torch

from tests.vision import v2

PIPELINE = v2.Compose(
    [
        v2.RandomHorizontalFlip(),
        v2.RandomCrop(6),
        v2.ColorJitter(0.4),
        v2.ToDtype(torch.float32, scale=True),
    ]
)
