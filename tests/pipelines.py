"""An albumentations pipeline that worker processes import, for tests."""

from __future__ import annotations

import albumentations as A

PIPELINE = A.Compose([A.HorizontalFlip(p=0.5), A.RandomCrop(6, 6), A.RandomBrightnessContrast(p=0.8)])
