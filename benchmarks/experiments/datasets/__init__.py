"""The data sets of the experiments, each as three disjoint splits behind one interface.

    from benchmarks.experiments import datasets

    cifar = datasets.cifar10(datasets.data_folder())
    data = datasets.binary(cifar, ratio=100, seed=0)
    data.train.counts                                   # (4410, 44)
    numbers = data.augmentation.draw(64, generator)     # on the CPU, wherever the images are
    batch = data.normalise(data.augmentation(data.train.images[indices], numbers))

| call                        | negatives : positives          | files                             |
| --------------------------- | ------------------------------ | --------------------------------- |
| ``binary(cifar10(...))``    | automobile : truck, any others | CIFAR-10, binary or Python        |
| ``binary(cifar100(...))``   | five sea mammals : shark       | CIFAR-100, binary or Python       |
| ``long_tailed(cifar10())``  | 10 or 100 classes              | the same                          |
| ``dermoscopy(...)``         | benign : malignant             | ``train.csv``, ``jpeg/train``     |
| ``fashion()``               | T-shirt : shirt                | in this repository                |

Only the last is part of the repository; nothing is read from a network. Missing or damaged files
are a :class:`DataError`, which says what is wrong and where the files come from.

Which validation images are held out depends on ``split_seed`` alone, so that they are the same for
every ``seed`` and ratio; ``seed`` chooses the training images among the others. (The published code
of ALM, Sangalli et al. 2021, draws training images without leaving out its validation images, so
most of these are trained on as well. Here the splits are disjoint; figures differ for that reason
too.)
"""

from .augmentation import Augmentation
from .cifar import Source, binary, cifar10, cifar100, long_tail_counts, long_tailed
from .common import Data, DataError, MissingDataError, Split, data_folder
from .fashion_mnist import fashion
from .isic import dermoscopy

__all__ = [
    "Augmentation",
    "Data",
    "DataError",
    "MissingDataError",
    "Source",
    "Split",
    "binary",
    "cifar10",
    "cifar100",
    "data_folder",
    "dermoscopy",
    "fashion",
    "long_tail_counts",
    "long_tailed",
]
