"""What a run is: data set, base loss, method, network and schedule, in one flat record.

:func:`configure` builds the record of a published cell (a data set, one of the eight base losses,
and base, ALM or RankReg) at one of the sizes in :data:`PRESETS`. Settings of base losses and of ALM
are those published with ALM (Sangalli et al. 2021); those of RankReg are not public to us and were
chosen by the sweeps of :mod:`.sweep`, on validation images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

LOSSES = ("bce", "s-ml", "s-fl", "a-ml", "a-fl", "cb-bce", "w-bce", "ldam")
METHODS = ("base", "alm", "rankreg")


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run, besides the data's files and the software.

    Attributes:
        setting: the data set and its imbalance, a key of :data:`SETTINGS`.
        loss: one of :data:`LOSSES`; ``"ce"`` for several classes.
        method: ``"base"``, ``"alm"`` or ``"rankreg"``.
        seed: of the draw of training images, first weights, order of batches and augmentation.
        validation_per_class: held-out images; None: as published with ALM.
        width, stem_stride: of :class:`.models.ResNet10`.
        size: height and width of dermoscopy images; the others have theirs.
        epochs, batch_size, learning_rate, momentum, weight_decay: of SGD.
        schedule: ``"constant"``, or ``"cosine"``: up in a tenth of the epochs, then down to 0.
        patience: epochs without a better validation AUC after which a run stops; 0: never.
        precision: ``"float32"``, ``"tf32"`` (GPU), or ``"bf16"`` (autocast).
        positives_per_batch: guaranteed by a sampler, for the base loss too; 0: plain shuffling.
        margin, gamma, weight, beta: of the base loss that has it.
        mu, delta: of ALM.
        alpha, lam, power, gradient, projection: of :class:`rankreg_ext.nn.RankReg`.
        extra_positives: images of positives that join each batch, for the term of the method alone;
            the base loss does not see them.
        remembered: scores of past negatives in the list of RankReg.
        start: share of the epochs that pass before RankReg sets in.
    """

    setting: str = "cifar10-100"
    loss: str = "bce"
    method: str = "base"
    seed: int = 0
    validation_per_class: int | None = None
    width: int = 64
    stem_stride: int = 1
    size: int = 64
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 2e-4
    schedule: str = "constant"
    patience: int = 30
    precision: str = "float32"
    positives_per_batch: int = 0
    margin: float = 0.5
    gamma: float = 0.5
    weight: float = 1 / 3
    beta: float = 0.99
    mu: float = 1e-7
    delta: float = 0.25
    alpha: float = 0.1
    lam: float = 10.0
    power: int = 2
    gradient: str = "blackbox"
    projection: str = "none"
    extra_positives: int = 0
    remembered: int = 0
    start: float = 0.0

    @property
    def name(self) -> str:
        """Of the run's files: unique within one folder of results."""
        return f"{self.setting}-{self.loss}-{self.method}-{self.seed}"

    @property
    def label(self) -> str:
        """The method as tables call it; a base loss with a sampler is a method of its own."""
        return "sampler" if self.method == "base" and self.positives_per_batch else self.method


# Sizes of the same experiment. "paper" is the protocol published with ALM, the others are ours.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {"width": 16, "stem_stride": 2, "epochs": 40, "patience": 0},
    "tiny": {"width": 4, "stem_stride": 2, "epochs": 3, "patience": 0},
}

# What the ALM code's page gives for each data set and loss; melanoma and several classes: ours.
_BINARY = {
    "bce": {"mu": 1e-7, "delta": 0.25},
    "s-ml": {"margin": 0.5, "mu": 1e-6, "delta": 0.1},
    "s-fl": {"gamma": 0.5, "mu": 1e-6, "delta": 0.5},
    "a-ml": {"margin": 0.5, "mu": 1e-7, "delta": 0.25},
    "a-fl": {"gamma": 1.0, "mu": 1e-5, "delta": 0.25},
    "cb-bce": {"beta": 0.99, "mu": 1e-4, "delta": 0.5},
    "w-bce": {"weight": 1 / 3, "mu": 1e-7, "delta": 1.0},
    "ldam": {"mu": 1e-6, "delta": 1.0},
}
_BINARY_200 = {
    "bce": {"mu": 1e-5, "delta": 0.5},
    "s-ml": {"margin": 0.5, "mu": 1e-9, "delta": 0.0},
    "s-fl": {"gamma": 0.5, "mu": 1e-7, "delta": 0.0},
    "a-ml": {"margin": 0.5, "mu": 1e-9, "delta": 0.0},
    "a-fl": {"gamma": 0.5, "mu": 1e-7, "delta": 1.0},
    "cb-bce": {"beta": 0.99, "mu": 1e-4, "delta": 0.1},
    "w-bce": {"weight": 1 / 3, "mu": 1e-7, "delta": 0.1},
    "ldam": {"mu": 1e-8, "delta": 0.25},
}
_HUNDRED = {
    "bce": {"mu": 1e-3, "delta": 0.1},
    "s-ml": {"margin": 0.5, "mu": 1e-3, "delta": 1.0},
    "s-fl": {"gamma": 2.0, "mu": 1e-5, "delta": 0.25},
    "a-ml": {"margin": 2.0, "mu": 1e-3, "delta": 0.5},
    "a-fl": {"gamma": 2.0, "mu": 1e-4, "delta": 0.1},
    "cb-bce": {"beta": 0.99, "mu": 1e-2, "delta": 0.25},
    "w-bce": {"weight": 1.0, "mu": 1e-7, "delta": 1.0},
    "ldam": {"mu": 1e-7, "delta": 0.5},
}
_HUNDRED_200 = {
    "bce": {"mu": 1e-3, "delta": 0.1},
    "s-ml": {"margin": 2.0, "mu": 1e-4, "delta": 0.5},
    "s-fl": {"gamma": 2.0, "mu": 1e-3, "delta": 0.1},
    "a-ml": {"margin": 4.0, "mu": 1e-3, "delta": 0.5},
    "a-fl": {"gamma": 2.0, "mu": 1e-3, "delta": 0.25},
    "cb-bce": {"beta": 0.99, "mu": 1e-3, "delta": 1.0},
    "w-bce": {"weight": 1.0, "mu": 1e-6, "delta": 1.0},
    "ldam": {"mu": 1e-3, "delta": 0.25},
}


@dataclass(frozen=True)
class Setting:
    """A data set of the paper.

    Attributes:
        title: in words.
        ratio: negatives per positive, or largest class over smallest.
        losses: settings of each base loss, and of ALM beside it.
        common: settings of every run, over the preset's.
    """

    title: str
    ratio: int
    losses: dict[str, dict[str, Any]]
    common: dict[str, Any]


_SLOW = {"learning_rate": 1e-3}  # CIFAR-100, as published with ALM
_CE = {"ce": {"mu": 1e-5, "delta": 0.25}}
SETTINGS: dict[str, Setting] = {
    "cifar10-100": Setting("CIFAR-10, automobile : truck, 100 : 1", 100, _BINARY, {}),
    "cifar10-200": Setting("CIFAR-10, automobile : truck, 200 : 1", 200, _BINARY_200, {}),
    "cifar100-100": Setting("CIFAR-100, sea mammals : shark, 100 : 1", 100, _HUNDRED, _SLOW),
    "cifar100-200": Setting("CIFAR-100, sea mammals : shark, 200 : 1", 200, _HUNDRED_200, _SLOW),
    "melanoma-170": Setting("dermoscopy, benign : malignant, 170 : 1", 170, _BINARY, {}),
    "fashion-100": Setting("Fashion-MNIST, T-shirt : shirt, 100 : 1", 100, _BINARY, {}),
    "lt-cifar10-100": Setting("LT-CIFAR10, imbalance 100", 100, _CE, {}),
    "lt-cifar10-200": Setting("LT-CIFAR10, imbalance 200", 200, _CE, {}),
}
CRITICAL = {"lt-cifar10-100": (9,), "lt-cifar10-200": (9,)}  # the rarest class: our choice

# RankReg's own settings, chosen on validation images.
RANKREG: dict[str, Any] = {"alpha": 0.1, "lam": 10.0, "extra_positives": 4}


def configure(
    setting: str, loss: str, method: str, *, preset: str = "paper", seed: int = 0, **overrides: Any
) -> Config:
    """The settings of one run of a published cell.

    Args:
        setting: a key of :data:`SETTINGS`.
        loss: one of its losses.
        method: one of :data:`METHODS`.
        preset: a key of :data:`PRESETS`.
        seed: of the run.
        overrides: further fields of :class:`Config`.

    Raises:
        ValueError: for a name that does not exist, or a combination that does not.

    Example:
        >>> configure("cifar10-100", "a-fl", "alm", preset="cpu", seed=3).name
        'cifar10-100-a-fl-alm-3'
    """
    for argument, value, known in (
        ("setting", setting, SETTINGS),
        ("method", method, METHODS),
        ("preset", preset, PRESETS),
    ):
        if value not in known:
            raise ValueError(
                f"configure: {argument} must be one of {', '.join(known)}, got {value!r}"
            )
    cell = SETTINGS[setting]
    if loss not in cell.losses:
        raise ValueError(
            f"configure: loss must be one of {', '.join(cell.losses)} for {setting}, got {loss!r}"
        )
    unknown = set(overrides) - {field.name for field in fields(Config)}
    if unknown:
        raise ValueError(f"configure: no such setting: {', '.join(sorted(unknown))}")
    settings = {**cell.common, **PRESETS[preset], **cell.losses[loss]}
    if method == "rankreg":
        settings |= RANKREG
    config = Config(setting=setting, loss=loss, method=method, seed=seed)
    return replace(config, **(settings | overrides))
