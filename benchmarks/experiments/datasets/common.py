"""What all data sets share: splits, where files lie, draws that depend on their seed alone."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .augmentation import Augmentation

ROOT = Path(__file__).parents[3]


class DataError(RuntimeError):
    """Files of a data set are missing, damaged or not what they should be."""


class MissingDataError(DataError):
    """Files of a data set are not there; the message says where to get them."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split and what they show.

    Attributes:
        images: ``(n, channels, height, width)`` uint8.
        targets: ``(n,)`` bool, true for the rare class, or int64 class indices.
        names: of the classes; of two classes, the negative one first.
        source: ``(n,)`` int64, which image of the original files each one is: places in the
            training files for training and validation images, in the test files for test images
            (for one list of images, in that list).
    """

    images: Tensor
    targets: Tensor
    names: tuple[str, ...]
    source: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each class, in the order of ``names``."""
        return tuple(torch.bincount(self.targets.long(), minlength=len(self.names)).tolist())

    def to(self, device: torch.device | str) -> Split:
        """The split with images and targets on ``device``."""
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint splits, and how their images are to be prepared.

    Attributes:
        name: says in words what it is.
        train, validation, test: the splits.
        mean, std: per channel, of pixels scaled to [0, 1].
        augmentation: the usual one for these images, for training only.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def normalise(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(images / 255 - mean) / std`` of ``(n, channels, height, width)``, on their device.

        Computed in float32 as ``(images - 255 mean) / (255 std)``, each step rounded by itself:
        with equal bits on every device.
        """
        centre, spread = self._constants_on(images.device)
        return ((images.float() - centre) / spread).to(dtype)

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of each channel ``255 mean`` and ``255 std``, copied to the device once."""
        if device not in self._constants:
            # Tensors: a GPU divides by a Python number inexactly, by multiplying.
            self._constants[device] = tuple(
                torch.tensor([255 * value for value in values], device=device).view(1, -1, 1, 1)
                for values in (self.mean, self.std)
            )
        return self._constants[device]

    def to(self, device: torch.device | str) -> Data:
        """All splits on ``device``."""
        splits = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **splits)

    def fingerprint(self) -> str:
        """A digest of all images and targets, for the record and for checkpoints."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(repr((tuple(split.images.shape), split.names)).encode())
            digest.update(split.images.cpu().contiguous().numpy())
            digest.update(split.targets.cpu().numpy())
        return digest.hexdigest()

    def describe(self) -> str:
        """Images of each class in each split, as lines of text."""
        lines = [self.name]
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            counts = zip(split.counts, split.names, strict=True)
            lines.append(f"  {name:<10} " + ", ".join(f"{n:,} {label}" for n, label in counts))
        return "\n".join(lines)


def data_folder() -> Path:
    """Where data sets are looked for: ``RANKREG_DATA``, or ``shared/data`` beside the repository.

    Raises:
        MissingDataError: if it is no folder.
    """
    named = os.environ.get("RANKREG_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        where = f"RANKREG_DATA={named}" if named else str(folder)
        raise MissingDataError(
            f"no data sets: {where} is no folder; set the environment variable RANKREG_DATA to "
            "the folder that holds them"
        )
    return folder


def integer(function: str, argument: str, value: int, least: int) -> None:
    """Require an integer of at least ``least``."""
    required = f"{function}: {argument} must be an integer of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{required}, got {value!r}")
    if value < least:
        raise ValueError(f"{required}, got {value}")


def shuffled(items: Tensor, purpose: str, seed: int) -> Tensor:
    """``items`` in an order that depends on ``purpose`` and ``seed`` alone."""
    # Mixed rather than added: no two purposes share an order for some pair of seeds.
    mixed = random.Random(f"{purpose} {seed}").getrandbits(63)
    return items[torch.randperm(len(items), generator=torch.Generator().manual_seed(mixed))]


def first_few(items: list[str], most: int = 5) -> str:
    """``items`` as text, of which only the first ``most`` are spelled out."""
    text = ", ".join(items[:most])
    return text if len(items) <= most else f"{text} and {len(items) - most:,} more"
