"""One training run: a small network, with or without RankReg, that can stop after any epoch."""

from __future__ import annotations

import functools
import hashlib
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rankreg_ext
from rankreg_ext.data import PositiveBatchSampler
from rankreg_ext.nn import RankReg, ScoreMemory

from . import dataset
from .checkpoint import fingerprint
from .dataset import Data, Split

MOMENTUM = 0.9
WARM_UP = 0.2  # of all steps, in which the learning rate rises
MAX_SHIFT = 2  # pixels, of the augmentation
EVALUATION_BATCH = 500
CODE = ("dataset.py", "pool.py", "train.py")  # whatever a run's numbers depend on


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run, besides its seed and the software.

    Attributes:
        alpha: weight of the RankReg term; 0 is the base loss alone.
        lam, power: of the RankReg term.
        rankreg_from: share of the epochs that pass before the term sets in.
        remembered: past negative scores that lengthen the list; 0: no memory.
        positives_per_batch: guaranteed by the sampler; 0: plain shuffling without a guarantee.
        limit: use every ``limit``-th image only.
    """

    alpha: float = 0.0
    lam: float = 1.0
    power: int = 2
    rankreg_from: float = 0.0
    remembered: int = 0
    positives_per_batch: int = 4
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    epochs: int = 20
    width: int = 16
    limit: int = 1


def build_model(width: int) -> nn.Sequential:
    """Three convolutions on ``(n, 1, 28, 28)``, global average pooling, one logit per image."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.MaxPool2d(2),  # before the normalisation: as good, and a quarter of the work there
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 1),
        nn.Flatten(0),
    ).to(memory_format=torch.channels_last)


def augment(images: Tensor, black: float, generator: torch.Generator) -> Tensor:
    """Each image mirrored or not, and moved by up to two pixels each way."""
    n, _, height, width = images.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    shift = torch.randint(0, 2 * MAX_SHIFT + 1, (2, n, 1), generator=generator)
    padded = F.pad(images[:, 0], (MAX_SHIFT,) * 4, value=black)
    rows, columns = shift[0] + torch.arange(height), shift[1] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    item = torch.arange(n)[:, None, None]
    return padded[item, rows[:, :, None], columns[:, None, :]][:, None]


class TrainingRun:
    """A network in training; a pure function of the settings, the seed and the data.

    Two runs of one seed that differ in their loss start from the same weights and see the same
    batches, augmented alike: their difference is the loss's doing. All randomness comes from
    generators of the run's own, which are part of its state.
    """

    def __init__(self, settings: Settings, seed: int, data: Data) -> None:
        self.settings, self.data = settings, data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build_model(settings.width)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.learning_rate,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )
        self.rankreg = None
        if settings.alpha > 0:
            memory = None
            if settings.remembered:
                memory = ScoreMemory(settings.remembered, keep="negatives")
            self.rankreg = RankReg(
                alpha=settings.alpha, lam=settings.lam, power=settings.power, memory=memory
            )
        self.sampler = None
        if settings.positives_per_batch:
            self.sampler = PositiveBatchSampler(
                data.train.positives, settings.batch_size, settings.positives_per_batch, seed=seed
            )
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = 0

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.settings.epochs

    def train_epoch(self) -> None:
        """One pass over the training split."""
        self.model.train()
        batches = self._batches()
        with_rankreg = self.rankreg is not None and (
            self.epoch >= self.settings.rankreg_from * self.settings.epochs
        )
        for step, indices in enumerate(batches):
            self._set_learning_rate(self.epoch + (step + 1) / len(batches))
            positives = self.data.train.positives[indices]
            images = augment(self.data.train.images[indices], self.data.black, self.generator)
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
            loss = F.binary_cross_entropy_with_logits(logits, positives.to(logits.dtype))
            if with_rankreg:
                loss = loss + self.rankreg(logits, positives)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.epoch += 1

    @torch.no_grad()
    def scores(self, split: Split) -> Tensor:
        """``(n,)`` logits of the network as it is now."""
        self.model.eval()
        return torch.cat(
            [
                self.model(images.contiguous(memory_format=torch.channels_last))
                for images in split.images.split(EVALUATION_BATCH)
            ]
        )

    def result(self) -> dict[str, Tensor]:
        """The logits of both splits that are not trained on."""
        return {
            "validation": self.scores(self.data.validation),
            "test": self.scores(self.data.test),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that the remaining epochs depend on."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rankreg": self.rankreg.state_dict() if self.rankreg else {},
            "sampler": self.sampler.state_dict() if self.sampler else {},
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rankreg:
            self.rankreg.load_state_dict(state["rankreg"])
        if self.sampler:
            self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])

    def _batches(self) -> list[Tensor]:
        if self.sampler:
            return [torch.tensor(indices) for indices in self.sampler]
        n = len(self.data.train.positives)
        order = torch.randperm(n, generator=self.generator)
        return list(order.split(self.settings.batch_size))

    def _set_learning_rate(self, epoch: float) -> None:
        """Rising in a straight line, then falling to 0 in half a cosine."""
        at = epoch / self.settings.epochs
        if at < WARM_UP:
            factor = at / WARM_UP
        else:
            factor = (1 + math.cos(math.pi * (at - WARM_UP) / (1 - WARM_UP))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.settings.learning_rate


@dataclass(frozen=True)
class Job:
    """A run for :func:`.pool.run_all`.

    Attributes:
        name: of its checkpoint, and in the progress display.
        settings, seed: of the run.
        backend: the back-end that ranks, a name for :func:`rankreg_ext.use_backend`.
    """

    name: str
    settings: Settings
    seed: int
    backend: str

    @property
    def epochs(self) -> int:
        return self.settings.epochs

    def fingerprint(self) -> str:
        """What a checkpoint of this job is bound to."""
        here = Path(__file__).parent
        code = b"".join((here / name).read_bytes() for name in CODE)
        return fingerprint(
            {
                "settings": asdict(self.settings),
                "seed": self.seed,
                "backend": self.backend,
                "images": dataset.SUBSET_SHA256,
                "code": hashlib.sha256(code).hexdigest(),
                "rankreg_ext": rankreg_ext.__version__,
                "torch": torch.__version__,
                "processor": (platform.machine(), torch.backends.cpu.get_cpu_capability()),
            }
        )

    def start(self) -> TrainingRun:
        """The run at its start."""
        return TrainingRun(self.settings, self.seed, _data(self.settings.limit))


@functools.lru_cache(maxsize=1)
def _data(limit: int) -> Data:
    return dataset.load(limit=limit)
