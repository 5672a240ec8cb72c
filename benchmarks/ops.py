"""What each op computes, on what inputs, and the answer that every provider must give.

Inputs are tuples of tensors. The answer comes from ``rankreg_ext.reference``; for inputs too large
for it, which sorts several times, from counting (:mod:`.baselines`), which the specification
confirms on the smaller ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from rankreg_ext import _hinge, reference

from . import baselines
from .baselines import LAM, LOSS_LAM
from .cases import Case
from .training import Trainer

LARGE = 2**22  # elements; beyond them the answer is counted
SAMPLED = 4096  # ranks of such an answer, where an op has no positives


@dataclass(frozen=True)
class Answer:
    """What a call must return.

    ``known``: where ``value`` was computed, None for everywhere. ``untied()``: where ties cannot
    matter, so that also a provider that breaks them arbitrarily must agree; ``spill``: the share of
    those elements that ties elsewhere may change all the same, because ranks feed back into
    scores.
    """

    value: Tensor
    untied: Callable[[], Tensor]
    known: Tensor | None = None
    spill: float = 0.0


@dataclass(frozen=True)
class Op:
    """``floor``: bytes per element that any implementation must read and write."""

    inputs: Callable[[Case, torch.Generator], tuple]
    answer: Callable[..., Answer]
    floor: Callable[[int], int]


# ----------------------------------------------------------------------------------------- inputs


def make_inputs(case: Case, seed: int, device: str = "cpu") -> tuple:
    """The inputs of one call; another seed gives other inputs of the same kind.

    They are drawn on the device itself: a list of 1e8 scores takes the CPU a second.
    """
    return OPS[case.op].inputs(case, torch.Generator(device).manual_seed(seed))


def scores(case: Case, generator: torch.Generator, positives: Tensor | None = None) -> Tensor:
    """``(batch, n)`` of the case's dtype and kind of values."""
    shape, kind = (case.batch, case.n), case.values
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    drawn = {"generator": generator, "device": generator.device}
    if kind == "tied":  # about sixteen equal scores of each value
        x = torch.randint(max(2, case.n // 16), shape, **drawn).to(dtype)
    else:
        x = torch.randn(shape, dtype=dtype, **drawn)
    if kind in ("sorted", "reversed"):
        x = x.sort(-1, descending=kind == "reversed").values
    elif kind == "clustered":  # eight narrow clusters: most leading bits agree
        centre = torch.randint(8, shape, **drawn)
        x = 1 + 0.1 * centre + 1e-4 * x
    elif kind == "separated" and positives is not None:  # a classifier that works
        x = x + 2.5 * positives
    return x.to(getattr(torch, case.dtype))


def _scores(case: Case, generator: torch.Generator) -> tuple:
    return (scores(case, generator),)


def _scores_and_gradient(case: Case, generator: torch.Generator) -> tuple:
    x = scores(case, generator)
    return x, _gradient(x, generator)


def _gradient(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device) / LAM


def _scores_and_positives(case: Case, generator: torch.Generator) -> tuple:
    device = generator.device
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    random = np.random.default_rng(seed)
    lists = range(case.batch)
    chosen = np.stack([random.choice(case.n, case.positives, replace=False) for _ in lists])
    positives = torch.zeros(case.batch, case.n, dtype=torch.bool, device=device)
    positives.scatter_(-1, torch.from_numpy(chosen).to(device), True)
    return scores(case, generator, positives), positives


def _scores_positives_and_gradient(case: Case, generator: torch.Generator) -> tuple:
    x, positives = _scores_and_positives(case, generator)
    g = _gradient(x, generator)
    ranks = reference.rank_dtype(x.dtype, case.n)
    return x, positives, g.masked_fill_(~positives, 0).to(ranks)


FEATURES = {"linear": (64,), "mlp": (64,), "cnn": (1, 28, 28)}


def _training_batch(case: Case, generator: torch.Generator) -> tuple:
    images = torch.randn((case.n, *FEATURES[case.values]), generator=generator)
    labels = torch.zeros(case.n, dtype=torch.bool)
    labels[torch.randperm(case.n, generator=generator)[: case.positives]] = True
    return images, labels


# ---------------------------------------------------------------------------------------- answers


def untied(x: Tensor) -> Tensor:
    """Where a score has no equal in its list."""
    x = x.to(reference.compute_dtype(x.dtype))
    ordered = x.sort(-1).values
    equal = torch.searchsorted(ordered, x, right=True) - torch.searchsorted(ordered, x)
    return equal == 1


def _rank_answer(case: Case, x: Tensor) -> Answer:
    if case.elements <= LARGE:
        return Answer(reference.rank(x), cache(lambda: untied(x)))
    chosen = np.random.default_rng(0).choice(case.n, min(case.n, SAMPLED), replace=False)
    chosen = torch.from_numpy(chosen).to(x.device).expand(case.batch, -1)
    ranks = baselines.counted_ranks(x, x.gather(-1, chosen))
    value = x.new_zeros(x.shape, dtype=reference.rank_dtype(x.dtype, case.n))
    value.scatter_(-1, chosen, ranks.to(value.dtype))
    known = x.new_zeros(x.shape, dtype=torch.bool).scatter_(-1, chosen, True)
    return Answer(value, cache(lambda: untied(x)), known)


def _blackbox_answer(case: Case, x: Tensor, g: Tensor) -> Answer:
    value = reference.blackbox_rank_backward(g, x, reference.rank(x), LAM, True, "min", None)
    return Answer(value, cache(lambda: untied(x) & untied(baselines.moved(x, g))))


def _positive_ranks_answer(case: Case, x: Tensor, positives: Tensor) -> Answer:
    small = case.elements <= LARGE
    of = reference.positive_ranks if small else baselines.positive_ranks_by_search
    return Answer(of(x, positives), cache(lambda: untied(x) | ~positives))


def _positive_ranks_backward_answer(case: Case, x: Tensor, positives: Tensor, g: Tensor) -> Answer:
    if case.elements <= LARGE:
        args = (LAM, True, "min", None)
        value = reference.blackbox_rank_backward(g, x, reference.rank(x), *args)
    else:
        ranks = baselines.counted_ranks(x, baselines.at(positives, x))
        value = baselines.positive_ranks_backward_by_search(x, positives, g, ranks)
    return Answer(value, cache(lambda: untied(x) & untied(baselines.moved(x, g))))


def _loss_answer(case: Case, x: Tensor, positives: Tensor) -> Answer:
    if case.elements <= LARGE:
        value = reference.rankreg_loss(x, positives, lam=LOSS_LAM)
    else:
        value = baselines.loss(baselines.counted_ranks(x, baselines.at(positives, x)), case.n)
    return Answer(value.to(reference.compute_dtype(x.dtype)), cache(lambda: torch.tensor(True)))


def _loss_gradient_answer(case: Case, x: Tensor, positives: Tensor) -> Answer:
    if case.elements <= LARGE:
        leaf = x.clone().requires_grad_()
        reference.rankreg_loss(leaf, positives, lam=LOSS_LAM).backward()
        value = leaf.grad
    else:
        ranks = baselines.counted_ranks(x, baselines.at(positives, x))
        value = baselines.loss_backward_by_search(x, positives, ranks)
    return Answer(value, cache(lambda: untied(x)), spill=1e-3)


def _hinge_answer(case: Case, x: Tensor, positives: Tensor) -> Answer:
    small = case.elements <= SAMPLED
    of = partial(reference.hinge_violations, where=None) if small else _hinge_in_torch
    return Answer(of(x, positives, baselines.DELTA), cache(lambda: torch.tensor(True)))


def _hinge_in_torch(x: Tensor, positives: Tensor, delta: float) -> Tensor:
    return _hinge.hinge_violations(x, positives, delta, None)


def _hinge_step_answer(case: Case, x: Tensor, positives: Tensor) -> Answer:
    leaf = x.clone().requires_grad_()
    _hinge_in_torch(leaf, positives, baselines.DELTA).sum().backward()
    return Answer(leaf.grad, cache(lambda: torch.tensor(True)))


def _rankdata_answer(case: Case, x: Tensor) -> Answer:
    ranks = reference.rank(x.double(), descending=False, ties="average")
    return Answer(ranks, cache(lambda: untied(x)))


def _training_answer(case: Case, images: Tensor, labels: Tensor) -> Answer:
    loss = partial(reference.rankreg_loss, lam=LOSS_LAM)
    value = Trainer(case.values, loss).fresh_gradients(images, labels)
    return Answer(value, cache(lambda: torch.tensor(True)))


OPS: dict[str, Op] = {
    "rank": Op(_scores, _rank_answer, lambda size: size + max(size, 4)),
    "blackbox_backward": Op(
        _scores_and_gradient, _blackbox_answer, lambda size: 2 * size + 2 * max(size, 4)
    ),
    "blackbox_step": Op(
        _scores_and_gradient, _blackbox_answer, lambda size: 3 * size + 3 * max(size, 4)
    ),
    "positive_ranks": Op(
        _scores_and_positives, _positive_ranks_answer, lambda size: size + 1 + max(size, 4)
    ),
    "positive_ranks_backward": Op(
        _scores_positives_and_gradient, _positive_ranks_backward_answer, lambda size: 2 * size + 1
    ),
    "rankreg_loss": Op(_scores_and_positives, _loss_answer, lambda size: size + 1),
    "rankreg_loss_backward": Op(
        _scores_and_positives, _loss_gradient_answer, lambda size: 2 * size + 1
    ),
    "rankreg_loss_step": Op(
        _scores_and_positives, _loss_gradient_answer, lambda size: 3 * size + 2
    ),
    "hinge_violations": Op(
        _scores_and_positives, _hinge_answer, lambda size: size + 1 + max(size, 4)
    ),
    "hinge_violations_step": Op(
        _scores_and_positives, _hinge_step_answer, lambda size: 3 * size + 2 + max(size, 4)
    ),
    "rankdata": Op(_scores, _rankdata_answer, lambda size: size + 8),
    "training_step": Op(_training_batch, _training_answer, lambda size: 0),
}


def floor_bytes(case: Case) -> int:
    """Bytes that one call must move, whatever the method."""
    return case.elements * OPS[case.op].floor(getattr(torch, case.dtype).itemsize)
