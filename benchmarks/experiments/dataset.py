"""The embedded Fashion-MNIST subset: shirts (rare, positive) against T-shirts (negative).

The images lie beside this file in one xz-compressed ``.npy`` array, whose sections and licence
``data/NOTICE`` describes; :mod:`benchmarks.experiments.make_subset` regenerates it. Nothing is
read from a network. Every load verifies the SHA-256 of the file.
"""

from __future__ import annotations

import hashlib
import io
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUBSET = Path(__file__).parent / "data" / "fashion_mnist_subset.npy.xz"
SUBSET_SHA256 = "5280179721caaa53ce2c5b249eb3d1d62114298ba0ec13747de8036c979f35d6"
IMAGES_SHA256 = "db967f350752ef52e63e1a07c15b6579b8a819290018ce3819f2c87aafae229b"

# Where each part of the original files lies in the array, in this order.
TRAIN_TSHIRTS = slice(0, 6000)
TRAIN_SHIRTS = slice(6000, 6500)
TEST_TSHIRTS = slice(6500, 7500)
TEST_SHIRTS = slice(7500, 8500)

# The first images train (5,000 : 50 = 100 : 1), the rest of the training files validate.
NEGATIVES_TO_TRAIN, POSITIVES_TO_TRAIN = 5000, 50


class CorruptDataError(RuntimeError):
    """The embedded images are missing or are not what the checksum says."""


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Attributes:
        images: ``(n, 1, 28, 28)`` float32, standardised with the training split's mean and
            standard deviation.
        positives: ``(n,)`` bool, true for a shirt. All negatives come first.
    """

    images: Tensor
    positives: Tensor


@dataclass(frozen=True)
class Data:
    """The three disjoint splits, and the standardised value of a black pixel (the background)."""

    train: Split
    validation: Split
    test: Split
    black: float


def load_images(path: Path = SUBSET) -> np.ndarray:
    """The ``(8500, 28, 28)`` uint8 images of the subset.

    Raises:
        CorruptDataError: if the file cannot be read, or differs from what was committed.
    """
    remedy = f"restore it (git checkout -- {path.name}) or see data/NOTICE to regenerate it"
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise CorruptDataError(f"cannot read the images: {error}; {remedy}") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != SUBSET_SHA256:
        raise CorruptDataError(
            f"{path} is corrupt: its SHA-256 is {found}, expected {SUBSET_SHA256}; {remedy}"
        )
    return np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False)


def load(path: Path = SUBSET, *, limit: int = 1) -> Data:
    """The splits as tensors.

    Training: 5,000 T-shirts and 50 shirts. Validation: 1,000 T-shirts and 450 shirts of the same
    original training files. Test: 1,000 and 1,000, all of the original test files.

    Args:
        path: the compressed array.
        limit: keep every ``limit``-th image of each class only, for quick trials.

    Raises:
        CorruptDataError: as :func:`load_images`.
    """
    images = load_images(path)
    tshirts, shirts = images[TRAIN_TSHIRTS], images[TRAIN_SHIRTS]
    parts = [
        (tshirts[:NEGATIVES_TO_TRAIN], shirts[:POSITIVES_TO_TRAIN]),
        (tshirts[NEGATIVES_TO_TRAIN:], shirts[POSITIVES_TO_TRAIN:]),
        (images[TEST_TSHIRTS], images[TEST_SHIRTS]),
    ]
    parts = [(negative[::limit], positive[::limit]) for negative, positive in parts]

    # In float64 and on integers, so that no summation order enters the result.
    pixels = np.concatenate(parts[0]).astype(np.int64)
    mean = pixels.sum() / pixels.size
    std = float(np.sqrt((pixels**2).sum() / pixels.size - mean**2))

    def split(negative: np.ndarray, positive: np.ndarray) -> Split:
        both = np.concatenate([negative, positive])[:, None]
        labels = torch.zeros(len(both), dtype=torch.bool)
        labels[len(negative) :] = True
        # torch.tensor copies into memory that torch has aligned: equal bits in every run.
        return Split(torch.tensor((both - mean) / std, dtype=torch.float32), labels)

    train, validation, test = (split(*part) for part in parts)
    return Data(train, validation, test, black=-mean / std)
