"""CIFAR-10 and CIFAR-100: binary sets with a rare class, and long-tailed sets.

The files are those of https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009), unpacked, in
the binary version or in the Python version that torchvision downloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import pickled
from .augmentation import Augmentation
from .common import Data, DataError, MissingDataError, Split, first_few, integer, shuffled

PIXELS = 3 * 32 * 32

# Those of the ALM and LDAM code, which take CIFAR-10's for CIFAR-100, too.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)


@dataclass(frozen=True)
class _Layout:
    """One version of the files: the folder, its files, the label bytes of a record (or None)."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int | None


@dataclass(frozen=True)
class _Kind:
    """What distinguishes the two data sets."""

    name: str
    classes: tuple[str, ...]
    coarse_classes: int | None
    layouts: tuple[_Layout, ...]
    label_key: str  # in the Python version
    negatives: tuple[int, ...]
    positives: tuple[int, ...]
    validation_per_class: int


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEN = _Kind(
    "CIFAR-10",
    CIFAR10,
    None,
    (
        _Layout(
            "cifar-10-batches-bin", tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",), 1
        ),
        _Layout("cifar-10-batches-py", _BATCHES, ("test_batch",), None),
    ),
    "labels",
    (1,),
    (9,),
    100,
)
_HUNDRED = _Kind(
    "CIFAR-100",
    CIFAR100,
    20,
    (
        _Layout("cifar-100-binary", ("train.bin",), ("test.bin",), 2),
        _Layout("cifar-100-python", ("train",), ("test",), None),
    ),
    "fine_labels",
    (72, 4, 95, 30, 55),
    (73,),
    50,
)


@dataclass(frozen=True)
class Source:
    """All images of a data set, before anything is drawn from them.

    Attributes:
        name: of the data set.
        classes: their names, in the order of the labels.
        images, test_images: ``(n, 3, 32, 32)`` uint8.
        labels, test_labels: ``(n,)`` int64; for CIFAR-100 the fine ones.
        negatives, positives: classes of the ALM protocol, which :func:`binary` takes by default.
        validation_per_class: images of the ALM protocol, likewise.
    """

    name: str
    classes: tuple[str, ...]
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    negatives: tuple[int, ...]
    positives: tuple[int, ...]
    validation_per_class: int


def cifar10(folder: Path) -> Source:
    """CIFAR-10 from its binary or its Python version.

    Files may hold any number of images: a part of the data set will do for sets that need no more.

    Args:
        folder: ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or the folder that holds one.

    Raises:
        DataError: if files are missing (:class:`MissingDataError`), cut off, have records of
            another length, or labels out of range.
    """
    return _read(_TEN, Path(folder))


def cifar100(folder: Path) -> Source:
    """CIFAR-100, fine labels, from its binary or its Python version.

    Args:
        folder: ``cifar-100-binary`` or ``cifar-100-python``, or the folder that holds one.

    Raises:
        DataError: as :func:`cifar10`.
    """
    return _read(_HUNDRED, Path(folder))


def binary(
    source: Source,
    negatives: Sequence[int | str] | None = None,
    positives: Sequence[int | str] | None = None,
    *,
    ratio: int = 100,
    seed: int = 0,
    validation_per_class: int | None = None,
    split_seed: int = 0,
) -> Data:
    """Some classes as negatives against others as rare positives.

    Of each negative class, 9/10 of the training images that are not held out for validation are
    drawn; the positives are drawn to be one for ``ratio`` of these. The whole files give 4,410 : 44
    and 4,410 : 22 for CIFAR-10 at ratio 100 and 200, and 2,025 : 20 and 2,025 : 10 for CIFAR-100,
    the sizes of the ALM protocol (Sangalli et al. 2021). Validation is balanced per class, and so
    is the test split: all test images of these classes.

    For a seed, every ratio has the same negatives, and the positives of a larger ratio are among
    those of a smaller one.

    Args:
        source: from :func:`cifar10` or :func:`cifar100`.
        negatives: classes by name or index. By default those of the ALM protocol: automobile; seal,
            beaver, whale, dolphin and otter. Which pair RankReg's authors used is uncertain: one
            slide says car and truck, another car and plane.
        positives: likewise; truck; shark.
        ratio: training negatives per training positive.
        seed: chooses the training images.
        validation_per_class: by default 100, for CIFAR-100 50, as in the ALM protocol.
        split_seed: chooses the validation images, which are never trained on.

    Raises:
        TypeError, ValueError: for arguments that are not as described, and if no positive is left.
        DataError: if the files hold too few images.
    """
    if validation_per_class is None:
        validation_per_class = source.validation_per_class
    integer("binary", "ratio", ratio, 1)
    integer("binary", "validation_per_class", validation_per_class, 0)
    negative = _classes("negatives", source.negatives if negatives is None else negatives, source)
    positive = _classes("positives", source.positives if positives is None else positives, source)
    if set(negative) & set(positive):
        both = [source.classes[c] for c in negative if c in positive]
        raise ValueError(f"binary: negatives and positives must differ, got {both} in both")

    groups = (negative, positive)
    images_of = _by_class(source.labels, len(source.classes))
    test_images_of = _by_class(source.test_labels, len(source.classes))
    held_out, pool = {}, {}
    for c in (*negative, *positive):
        _require(source, c, len(images_of[c]), validation_per_class + 1)
        held_out[c], pool[c] = _hold_out(
            images_of[c], validation_per_class, f"{source.name} {c}", seed, split_seed
        )
    taken = {c: 9 * len(pool[c]) // 10 for c in negative}
    n_positive = sum(taken.values()) // ratio
    if not n_positive:
        raise ValueError(
            f"binary: ratio must leave a positive, got {ratio} for {sum(taken.values())} negatives"
        )
    each, rest = divmod(n_positive, len(positive))
    taken |= {c: each + (k < rest) for k, c in enumerate(positive)}
    for c in positive:
        _require(source, c, len(images_of[c]), validation_per_class + taken[c])
    names = tuple("+".join(source.classes[c] for c in group) for group in groups)

    def split(images: Tensor, chosen: Mapping[int, Tensor] | Sequence[Tensor]) -> Split:
        negatives, positives = (torch.cat([chosen[c] for c in group]) for group in groups)
        indices = torch.cat([negatives, positives])
        targets = torch.arange(len(indices)) >= len(negatives)
        return Split(images[indices], targets, names, indices)

    return Data(
        f"{source.name}: {names[0]} against {names[1]}, {ratio} : 1",
        split(source.images, {c: pool[c][:n] for c, n in taken.items()}),
        split(source.images, held_out),
        split(source.test_images, test_images_of),
        MEAN,
        STD,
        Augmentation(pad=4),
    )


def long_tail_counts(largest: int, classes: int, imbalance: float) -> tuple[int, ...]:
    """Images of each class, falling exponentially from ``largest`` to ``largest / imbalance``.

    ``floor(largest * (1 / imbalance) ** (c / (classes - 1)))`` for class c: Cui et al. 2019, Cao et
    al. 2019.

    Example:
        >>> long_tail_counts(5000, 10, 100)
        (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    """
    integer("long_tail_counts", "largest", largest, 1)
    integer("long_tail_counts", "classes", classes, 2)
    if not 1 <= imbalance <= largest:
        raise ValueError(
            f"long_tail_counts: imbalance must lie in [1, largest = {largest}], got {imbalance}"
        )
    # The last class is exact in real numbers: no rounding error may take one image from it.
    counts = [int(largest * (1 / imbalance) ** (c / (classes - 1))) for c in range(classes - 1)]
    return (*counts, int(largest / imbalance))


def long_tailed(
    source: Source,
    imbalance: float = 100,
    *,
    seed: int = 0,
    validation_per_class: int | None = None,
    split_seed: int = 0,
) -> Data:
    """All classes, each rarer than the one before: LT-CIFAR10 and LT-CIFAR100.

    The training counts are those of :func:`long_tail_counts` for as many images as the largest
    class has. With validation images held out, a class that needs more than the others it has gets
    all of these: CIFAR-10's first class 4,900 instead of 5,000, all others as published. With
    ``validation_per_class=0`` all counts are the published ones, and there is nothing to choose
    settings by other than test images.

    For a seed, the training images of a larger imbalance are among those of a smaller one.

    Args:
        source: from :func:`cifar10` or :func:`cifar100`.
        imbalance: size of the first class over that of the last.
        seed, validation_per_class, split_seed: as in :func:`binary`; 100 and, for CIFAR-100, 50 are
            this project's choice here.

    Raises:
        TypeError, ValueError: for arguments that are not as described.
        DataError: if the files hold too few images of a class.
    """
    if validation_per_class is None:
        validation_per_class = source.validation_per_class
    integer("long_tailed", "validation_per_class", validation_per_class, 0)
    n = len(source.classes)
    images_of = _by_class(source.labels, n)
    largest = max(map(len, images_of))
    published = long_tail_counts(largest, n, imbalance)
    train, validation = [], []
    for c, (images, count) in enumerate(zip(images_of, published, strict=True)):
        needed = max(min(count + validation_per_class, largest), validation_per_class + 1)
        _require(source, c, len(images), needed)
        held_out, pool = _hold_out(
            images, validation_per_class, f"{source.name} {c}", seed, split_seed
        )
        train.append(pool[:count])
        validation.append(held_out)

    def split(images: Tensor, labels: Tensor, chosen: list[Tensor]) -> Split:
        indices = torch.cat(chosen)
        return Split(images[indices], labels[indices], source.classes, indices)

    return Data(
        f"LT-{source.name.replace('-', '')}, imbalance {imbalance:g}",
        split(source.images, source.labels, train),
        split(source.images, source.labels, validation),
        split(source.test_images, source.test_labels, _by_class(source.test_labels, n)),
        MEAN,
        STD,
        Augmentation(pad=4),
    )


def _classes(argument: str, asked: Sequence[int | str], source: Source) -> tuple[int, ...]:
    """Indices of the classes, by which they may be asked for as well as by name."""
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        raise TypeError(
            f"binary: {argument} must be a sequence of class names or indices, got {asked!r}"
        )
    indices = []
    for one in asked:
        if isinstance(one, str) and one in source.classes:
            indices.append(source.classes.index(one))
        elif isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(source.classes):
            indices.append(one)
        else:
            raise ValueError(
                f"binary: {argument} must hold names or indices (0 to {len(source.classes) - 1}) "
                f"of classes of {source.name}, got {one!r}"
            )
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(
            f"binary: {argument} must hold at least one class, each once, got {asked!r}"
        )
    return tuple(indices)


def _by_class(labels: Tensor, classes: int) -> Sequence[Tensor]:
    """For each class, which images are of it, in their order."""
    order = labels.argsort(stable=True)
    return order.split(torch.bincount(labels, minlength=classes).tolist())


def _hold_out(
    images: Tensor, validation: int, purpose: str, seed: int, split_seed: int
) -> tuple[Tensor, Tensor]:
    """Validation images of a class, and the others in the order in which they are drawn."""
    order = shuffled(images, f"{purpose} validation", split_seed)
    rest = order[validation:].sort().values
    return order[:validation], shuffled(rest, f"{purpose} training", seed)


def _require(source: Source, c: int, found: int, needed: int) -> None:
    if found < needed:
        raise DataError(
            f"{source.name}: {needed:,} training images of class {c} ({source.classes[c]}) are "
            f"needed, the files hold {found:,}"
        )


def _read(kind: _Kind, folder: Path) -> Source:
    for layout in kind.layouts:
        for candidate in (folder / layout.folder, folder):
            if any((candidate / name).is_file() for name in (*layout.train, *layout.test)):
                return _read_layout(kind, layout, candidate)
    raise MissingDataError(f"no {kind.name} in {folder}; {_remedy(kind, folder)}")


def _remedy(kind: _Kind, folder: Path) -> str:
    folders = " or ".join(f"{layout.folder}/" for layout in kind.layouts)
    return (
        f"download the binary or the Python version of {kind.name} from its page, "
        f"https://www.cs.toronto.edu/~kriz/cifar.html, and unpack it in {folder}, where it makes "
        f"{folders}"
    )


def _read_layout(kind: _Kind, layout: _Layout, folder: Path) -> Source:
    missing = [name for name in (*layout.train, *layout.test) if not (folder / name).is_file()]
    if missing:
        raise MissingDataError(
            f"{kind.name} is incomplete: {first_few(missing)} missing in {folder}; "
            f"{_remedy(kind, folder.parent)}"
        )
    parts = []
    for names in (layout.train, layout.test):
        files = [_read_file(kind, layout, folder / name) for name in names]
        images, labels = (np.concatenate(arrays) for arrays in zip(*files, strict=True))
        parts += [torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels)]
    return Source(
        kind.name, kind.classes, *parts, kind.negatives, kind.positives, kind.validation_per_class
    )


def _read_file(kind: _Kind, layout: _Layout, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``(n, 3072)`` uint8 and ``(n,)`` int64."""
    if layout.label_bytes is None:
        images, labels = _read_pickled(kind, path)
    else:
        images, labels = _read_binary(kind, layout.label_bytes, path)
    _check_labels(path, labels, len(kind.classes), "label")
    return images, labels


def _read_binary(kind: _Kind, label_bytes: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    record = label_bytes + PIXELS
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not len(content):
        raise DataError(f"{path}: empty; download it again")
    whole, left_over = divmod(len(content), record)
    if left_over:
        others = PIXELS + 3 - label_bytes
        raise DataError(
            f"{path}: must hold records of {record} bytes ({label_bytes} of labels, {PIXELS} of "
            f"pixels), got {whole} and {left_over} bytes more: "
            + (
                "truncated or damaged"
                if len(content) % others
                else f"whole records of {others} bytes, those of the other CIFAR"
            )
        )
    records = content.reshape(-1, record)
    if label_bytes == 2:
        _check_labels(path, records[:, 0], kind.coarse_classes, "coarse label")
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_pickled(kind: _Kind, path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = pickled.load(path)
    images, labels = content.get("data"), content.get(kind.label_key)
    if not isinstance(images, np.ndarray) or not isinstance(labels, list):
        raise DataError(
            f"{path}: must hold an array 'data' and a list '{kind.label_key}', got the keys "
            f"{sorted(content)}"
        )
    if images.shape != (len(labels), PIXELS) or not labels:
        raise DataError(
            f"{path}: 'data' must have shape (n, {PIXELS}), n the number of labels and above 0, "
            f"got {images.shape} and {len(labels)} labels"
        )
    if not all(isinstance(label, int) and abs(label) < 2**31 for label in labels):
        raise DataError(f"{path}: '{kind.label_key}' must hold integers alone")
    return images, np.array(labels, np.int64)


def _check_labels(path: Path, labels: np.ndarray, classes: int, what: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{path}: {what}s must lie in [0, {classes - 1}], got {labels[wrong[0]]} in record "
            f"{wrong[0]} (and {len(wrong) - 1:,} more out of range): damaged, or other files"
        )
