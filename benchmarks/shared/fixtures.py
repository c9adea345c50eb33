"""The real data that the benchmarks run on, made or found once and kept in a temporary folder of the run."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Debian's package dataset-fashion-mnist puts it there; FASHION_MNIST names another folder with the same files.
FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def grey_images(count: int) -> tuple[Array, Array, str]:
    """`count` 28 × 28 images with labels, and what they are.

    Fashion-MNIST where it is installed; otherwise the digits of scikit-learn, enlarged from 8 × 8 and repeated:
    as large to move, but not as varied.
    """
    images, labels = FASHION / "train-images-idx3-ubyte.gz", FASHION / "train-labels-idx1-ubyte.gz"
    if images.exists() and labels.exists():
        pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
        classes = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
        return pixels[:count].copy(), classes[:count].astype(np.int64), "Fashion-MNIST"
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = (digits.images * 15.9).astype(np.uint8)
    large = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    rows = np.arange(count) % len(large)
    return large[rows], digits.target[rows].astype(np.int64), "scikit-learn digits, enlarged and repeated"


def crops(count: int, side: int, seed: int = 0) -> Array:
    """uint8 [count, side, side, 3]: different crops and exposures of the photographs in scikit-image."""
    from skimage import data

    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    rng = np.random.default_rng(seed)
    made = np.empty((count, side, side, 3), np.uint8)
    for number in range(count):
        image = sources[number % len(sources)]
        top, left = (int(rng.integers(0, size - side + 1)) for size in image.shape[:2])
        table = np.clip(np.arange(256) * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8)
        made[number] = table[image[top : top + side, left : left + side]]
    return made


def photos(count: int, seed: int = 0) -> list[bytes]:
    """`count` different JPEGs of 500 × 375: random crops, flips and exposures of the photographs in scikit-image."""
    import cv2
    from skimage import data

    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.hubble_deep_field()]
    rng = np.random.default_rng(seed)
    encoded = []
    for number in range(count):
        image = sources[number % len(sources)]
        height, width = image.shape[:2]
        h = int(rng.uniform(0.55, 0.95) * min(height, width * 3 / 4))
        w = h * 4 // 3
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        crop = cv2.resize(image[top : top + h, left : left + w], (500, 375), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        crop = np.clip(crop * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8)
        done, jpeg = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert done
        encoded.append(jpeg.tobytes())
    return encoded
