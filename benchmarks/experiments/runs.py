"""One run of the paper's experiments: trains, validates after every epoch, keeps the best epoch.

A run is a pure function of its :class:`.config.Config`, its data and the software. Runs of one seed
that differ in their method start from the same weights and see the same batches, augmented alike.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rankreg_ext
from rankreg_ext import losses, metrics
from rankreg_ext.data import PositiveBatchSampler
from rankreg_ext.nn import RankReg, ScoreMemory

from . import datasets, models
from .checkpoint import fingerprint
from .config import CRITICAL, SETTINGS, Config
from .datasets import Data, Split

EVALUATION_BATCH = 1000
WARM_UP = 0.1  # of a cosine schedule
TPRS = (0.98, 0.95, 0.92, 0.90)
ERROR_TPRS = (0.80, 0.90)
RANK_QUANTILES = {"best": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "worst": 1.0}
CODE = ("runs.py", "models.py", "datasets")  # whatever a run's numbers depend on


@functools.lru_cache(maxsize=1)
def _cifar(hundred: bool, folder: Path) -> datasets.Source:
    return (datasets.cifar100 if hundred else datasets.cifar10)(folder)


@functools.lru_cache(maxsize=1)
def open_data(
    setting: str, seed: int, validation_per_class: int | None = None, size: int = 64
) -> Data:
    """The data of a setting, with the training images that ``seed`` draws.

    Raises:
        DataError: if files are missing or damaged; see :mod:`.datasets`.
    """
    if setting == "fashion-100":
        return datasets.fashion()
    folder, ratio = datasets.data_folder(), SETTINGS[setting].ratio
    if setting == "melanoma-170":
        return datasets.dermoscopy(folder, ratio=ratio, seed=seed, size=size)
    source = _cifar(setting.startswith("cifar100"), folder)
    options = {"seed": seed, "validation_per_class": validation_per_class}
    if setting.startswith("lt-"):
        return datasets.long_tailed(source, ratio, **options)
    return datasets.binary(source, ratio=ratio, **options)


def evaluate(scores: Tensor, targets: Tensor, critical: tuple[int, ...] = ()) -> dict[str, float]:
    """The metrics of a list of scores, in percent.

    Args:
        scores: ``(n,)`` scores of the rare class, or ``(n, C)`` logits of several.
        targets: ``(n,)`` bool, or int64 classes.
        critical: of several classes, those whose true-positive rate is demanded.
    """
    if scores.dim() == 1:
        names = [f"FPR@{100 * tpr:.0f}" for tpr in TPRS]
        fpr = metrics.fpr_at_tpr(scores, targets, TPRS)
        values = dict(zip(names, fpr.tolist(), strict=True))
        values["AUC"] = metrics.roc_auc(scores, targets).item()
    else:
        names = [f"Error@{100 * tpr:.0f}" for tpr in ERROR_TPRS]
        error = metrics.error_at_tpr(scores, targets, critical, ERROR_TPRS)
        values = dict(zip(names, error.mean(0).tolist(), strict=True))
        values["accuracy"] = metrics.accuracy(scores, targets).item()
        areas = [metrics.roc_auc(scores[:, c], targets == c).item() for c in critical]
        values["AUC"] = sum(areas) / len(areas)
    return {name: 100 * value for name, value in values.items()}


def base_loss(config: Config, train: Split) -> nn.Module:
    """The base loss of a run, with weights and margins from the training split's counts."""
    negatives_per_positive = SETTINGS[config.setting].ratio
    make: dict[str, Callable[[], nn.Module]] = {
        "bce": losses.BCE,
        "s-ml": lambda: losses.SymmetricMargin(config.margin),
        "a-ml": lambda: losses.AsymmetricMargin(config.margin),
        "s-fl": lambda: losses.SymmetricFocal(config.gamma),
        "a-fl": lambda: losses.AsymmetricFocal(config.gamma),
        "cb-bce": lambda: losses.ClassBalancedBCE(train.counts, config.beta),
        "w-bce": lambda: losses.WeightedBCE(negatives_per_positive, config.weight),
        "ldam": lambda: losses.LDAM(train.counts),
        "ce": nn.CrossEntropyLoss,
    }
    return make[config.loss]()


class Run:
    """A network in training, which can stop after any epoch.

    Args:
        config: of the run.
        data: see :func:`open_data`.
        device: where to train; the data is moved there.
    """

    def __init__(self, config: Config, data: Data, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.data = data.to(self.device)
        train = data.train
        self.critical = CRITICAL.get(config.setting, ())
        self.several = bool(self.critical)  # classes, rather than two
        self.rare = train.targets  # of each training image, on the CPU
        if self.several:
            self.rare = torch.isin(train.targets, torch.tensor(self.critical))
        outputs = len(train.names) if self.several else 2 if config.loss == "ldam" else 1
        self.model = models.build(
            config.seed,
            channels=train.images.shape[1],
            width=config.width,
            stem_stride=config.stem_stride,
            outputs=outputs,
            cosine=config.loss == "ldam",
        ).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.base = base_loss(config, train).to(self.device)
        self.term = self._term(len(train))
        self.sampler = None
        if config.positives_per_batch:
            self.sampler = PositiveBatchSampler(
                self.rare, config.batch_size, config.positives_per_batch, seed=config.seed
            )
        # Apart, so that what a method draws for itself leaves the others' batches as they are.
        self.generator = torch.Generator().manual_seed(config.seed)
        self.extra_generator = torch.Generator().manual_seed(config.seed + 2**32)
        self.epoch = 0
        self.log: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"epoch": 0, "auc": -1.0, "loss": math.inf, "model": {}}

    def _term(self, samples: int) -> nn.Module | None:
        config = self.config
        if config.method == "base":
            return None
        if config.method == "alm":
            term = losses.ALM(samples, delta=config.delta, mu=config.mu)
        else:
            memory = None
            if config.remembered:
                memory = ScoreMemory(config.remembered, keep="negatives")
            term = RankReg(
                alpha=config.alpha,
                lam=config.lam,
                power=config.power,
                memory=memory,
                gradient=config.gradient,
                projection=config.projection,
            )
        if self.several:
            term = losses.OneVersusRest(term, self.critical)
        return term.to(self.device)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or nothing has become better for too long."""
        patience = self.config.patience or math.inf
        return self.epoch >= self.config.epochs or self.epoch - self.best["epoch"] >= patience

    def train_epoch(self) -> None:
        """One pass over the training split, and validation."""
        config, train = self.config, self.data.train
        self.model.train()
        with_term = self.term is not None and self.epoch >= config.start * config.epochs
        batches, total = self._batches(), torch.zeros((), device=self.device)
        for step, indices in enumerate(batches):
            self._set_learning_rate(self.epoch + (step + 1) / len(batches))
            n = len(indices)
            numbers = self.data.augmentation.draw(n, self.generator)
            if with_term and config.extra_positives:
                indices = torch.cat([indices, self._extra_positives()])
                more = self.data.augmentation.draw(len(indices) - n, self.extra_generator)
                numbers = torch.cat([numbers, more])
            indices = indices.to(self.device)
            outputs = self._forward(self.data.augmentation(train.images[indices], numbers))
            targets = train.targets[indices]
            loss = self._base(outputs[:n], targets[:n])
            total += loss.detach()
            if with_term:
                loss = loss + self._term_of(outputs, targets, indices)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.epoch += 1
        self._validate(total.item() / len(batches))

    def _base(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.config.loss in ("ldam", "ce"):
            targets = targets.long()
        return self.base(outputs, targets)

    def _term_of(self, outputs: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        extra = (indices,) if self.config.method == "alm" else ()
        return self.term(self.scores_of(outputs), targets, *extra)

    def scores_of(self, outputs: Tensor) -> Tensor:
        """What is ranked: ``(n,)`` scores of the rare class, or ``(n, C)`` logits of several."""
        return losses.LDAM.scores(outputs) if self.config.loss == "ldam" else outputs

    def _forward(self, images: Tensor) -> Tensor:
        images = self.data.normalise(images).contiguous(memory_format=torch.channels_last)
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = self.model(images)
        return outputs.float()

    @torch.no_grad()
    def outputs(self, split: Split) -> Tensor:
        """The network's outputs for a split, as it is now."""
        self.model.eval()
        return torch.cat([self._forward(part) for part in split.images.split(EVALUATION_BATCH)])

    def _validate(self, loss: float) -> None:
        split = self.data.validation
        outputs = self.outputs(split)
        validation_loss = self._base(outputs, split.targets).item()
        scores = self.scores_of(outputs)
        values = evaluate(scores, split.targets, self.critical)
        entry = {
            "epoch": self.epoch,
            "loss": loss,
            "validation_loss": validation_loss,
            "validation": values,
            "ranks": self._ranks(scores, split.targets),
        }
        if self.config.method == "alm":
            alm = self.term.term if self.several else self.term
            entry["mu"] = alm.mu.item()
            alm.end_epoch(min(values["AUC"] / 100, 1.0))
        self.log.append(entry)
        best = self.best
        if (values["AUC"], -validation_loss) > (best["auc"], -best["loss"]):
            model = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best = {
                "epoch": self.epoch,
                "auc": values["AUC"],
                "loss": validation_loss,
                "model": model,
            }

    def _ranks(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Quantiles of the positives' ranks among all, from 0 (best) to 1."""
        if self.several:
            scores, targets = scores[:, self.critical[0]], targets == self.critical[0]
        ranks = rankreg_ext.positive_ranks(scores, targets)[targets].double()
        quantiles = torch.tensor(list(RANK_QUANTILES.values()), dtype=ranks.dtype)
        values = ((ranks.cpu() - 1) / len(scores)).quantile(quantiles)
        return dict(zip(RANK_QUANTILES, values.tolist(), strict=True))

    def result(self) -> dict[str, Any]:
        """What is kept of a finished run: figures of the best and the last epoch, and logits."""
        found: dict[str, Any] = {"log": self.log, "best_epoch": self.best["epoch"]}
        test = self.data.test
        found["test_last"] = self._figures(self.scores_of(self.outputs(test)), test)
        self.model.load_state_dict(self.best["model"])
        for name in ("validation", "test"):
            split = getattr(self.data, name)
            scores = self.scores_of(self.outputs(split))
            found[name] = self._figures(scores, split)
            found |= {f"{name}_scores": scores.cpu(), f"{name}_targets": split.targets.cpu()}
        return found

    def _figures(self, scores: Tensor, split: Split) -> dict[str, float]:
        return evaluate(scores, split.targets, self.critical)

    def state_dict(self) -> dict[str, Any]:
        """All that the remaining epochs depend on."""
        return {
            "epoch": self.epoch,
            "log": self.log,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "term": self.term.state_dict() if self.term else {},
            "sampler": self.sampler.state_dict() if self.sampler else {},
            "generators": [self.generator.get_state(), self.extra_generator.get_state()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.epoch, self.log, self.best = state["epoch"], state["log"], state["best"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.term:
            self.term.load_state_dict(state["term"])
        if self.sampler:
            self.sampler.load_state_dict(state["sampler"])
        for generator, saved in zip(
            (self.generator, self.extra_generator), state["generators"], strict=True
        ):
            generator.set_state(saved)

    def _batches(self) -> list[Tensor]:
        if self.sampler:
            return [torch.tensor(indices) for indices in self.sampler]
        order = torch.randperm(len(self.rare), generator=self.generator)
        return list(order.split(self.config.batch_size))

    def _extra_positives(self) -> Tensor:
        """Different positives each, as many as asked for or as there are."""
        places = self.rare.nonzero().flatten()
        order = torch.randperm(len(places), generator=self.extra_generator)
        return places[order[: self.config.extra_positives]]

    def _set_learning_rate(self, epoch: float) -> None:
        factor = 1.0
        if self.config.schedule == "cosine":
            at = epoch / self.config.epochs
            factor = at / WARM_UP
            if at >= WARM_UP:
                factor = (1 + math.cos(math.pi * (at - WARM_UP) / (1 - WARM_UP))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.config.learning_rate


# --- as jobs of the pool --------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run for :func:`.pool.run_all`.

    Attributes:
        config: of the run.
        backend: that ranks, a name for :func:`rankreg_ext.use_backend`.
        device: where it trains.
    """

    config: Config
    backend: str = "auto"
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.config.name}-{fingerprint(asdict(self.config))[:12]}"

    @property
    def epochs(self) -> int:
        return self.config.epochs

    def fingerprint(self) -> str:
        """What a checkpoint of this job is bound to."""
        return fingerprint(
            {
                "config": asdict(self.config),
                "backend": self.backend,
                "device": device_name(self.device),
                "data": _data_fingerprint(*self._data()),
                "code": _code_digest(),
                "rankreg_ext": rankreg_ext.__version__,
                "torch": torch.__version__,
                "processor": (platform.machine(), torch.backends.cpu.get_cpu_capability()),
            }
        )

    def start(self) -> Run:
        """The run at its start."""
        tf32 = self.config.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = False  # which would choose kernels by their time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return Run(self.config, open_data(*self._data()), self.device)

    def _data(self) -> tuple[Any, ...]:
        config = self.config
        return config.setting, config.seed, config.validation_per_class, config.size


def device_name(device: str) -> str:
    """``"cpu"``, or the GPU's own name."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


@functools.cache
def _data_fingerprint(*of: Any) -> str:
    return open_data(*of).fingerprint()


@functools.lru_cache(maxsize=1)
def _code_digest() -> str:
    """Of the code that decides a run's numbers, whatever its comments and docstrings say."""
    digest, here = hashlib.sha256(), Path(__file__).parent
    for name in CODE:
        path = here / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                    if isinstance(body[0].value, ast.Constant):  # a docstring
                        body[0].value.value = None
            digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def packed(value: Any) -> bytes:
    """``value`` as :func:`torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
