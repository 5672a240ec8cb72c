"""The embedded Fashion-MNIST images behind the interface of the other data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .. import dataset
from .augmentation import Augmentation
from .common import Data, DataError, Split

NAMES = ("T-shirt", "shirt")


def fashion(path: Path = dataset.SUBSET) -> Data:
    """5,000 T-shirts against 50 shirts: the images of :func:`benchmarks.experiments.dataset.load`.

    Validation has 1,000 and 450, test 1,000 and 1,000. There is nothing to draw: the splits are
    fixed, all negatives come first, and ``source`` counts in the embedded file.

    Raises:
        DataError: if the file is missing or differs from what was committed.
    """
    try:
        images = dataset.load_images(path)
    except dataset.CorruptDataError as error:
        raise DataError(str(error)) from error

    def split(negatives: range, positives: range) -> Split:
        source = torch.tensor([*negatives, *positives])
        targets = torch.arange(len(source)) >= len(negatives)
        return Split(torch.from_numpy(images[source.numpy()][:, None]), targets, NAMES, source)

    def part(of: slice, first: int | None = None, last: int | None = None) -> range:
        return range(of.start, of.stop)[first:last]

    tshirts, shirts = dataset.TRAIN_TSHIRTS, dataset.TRAIN_SHIRTS
    n, p = dataset.NEGATIVES_TO_TRAIN, dataset.POSITIVES_TO_TRAIN
    train = split(part(tshirts, last=n), part(shirts, last=p))
    # On integers, so that no summation order enters the result.
    pixels = train.images.numpy().astype(np.int64)
    mean = pixels.sum() / pixels.size
    std = float(np.sqrt((pixels**2).sum() / pixels.size - mean**2))
    return Data(
        "Fashion-MNIST: T-shirt against shirt, 100 : 1",
        train,
        split(part(tshirts, first=n), part(shirts, first=p)),
        split(part(dataset.TEST_TSHIRTS), part(dataset.TEST_SHIRTS)),
        (float(mean) / 255,),
        (std / 255,),
        Augmentation(pad=2),
    )
