"""What a lam does to a list: the figures behind the gradient of RankReg."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops, _validate, reference
from .functional import rank

__all__ = ["RankRegDiagnostics", "rankreg_diagnostics"]


class RankRegDiagnostics(NamedTuple):
    """One value per list, ``scores.shape[:-1]``; see :func:`rankreg_diagnostics`."""

    positives: Tensor
    """Number of positives."""
    mean_rank: Tensor
    """Mean rank of the positives; ``(positives + 1) / 2`` at best, without ties."""
    worst_rank: Tensor
    """Rank of the lowest positive."""
    zero_share: Tensor
    """Share of the positives whose own gradient is zero."""
    places_gained: Tensor
    """Places that a positive climbs under the perturbation, mean over the positives."""
    top_share: Tensor
    """Share of the positives that climb from below some negative to above (or level with) all."""
    negative_share: Tensor
    """Share of the negatives with a nonzero gradient."""
    reach: Tensor
    """The perturbation ``lam * h`` in units of the score, mean over the positives."""
    relative_reach: Tensor
    """The same in standard deviations of the list's scores."""

    def __str__(self) -> str:
        """A line per figure; of several lists, the values of the first few."""
        width = max(map(len, self._fields))
        return "\n".join(
            f"{name:{width}}  {_text(value)}"
            for name, value in zip(self._fields, self, strict=True)
        )


@torch.no_grad()
def rankreg_diagnostics(
    scores: Tensor,
    positives: Tensor,
    *,
    lam: float | Tensor,
    power: int = 2,
    normalize: str = "length",
    where: Tensor | None = None,
    projection: str = "none",
) -> RankRegDiagnostics:
    """How the gradient of :func:`rankreg_ext.rankreg_loss` comes about, to judge ``lam`` by.

    A positive has a gradient if the perturbation ``lam * h`` carries it to another rank, and a
    negative if positives come past it. Look at a few batches as the loss sees them:

    * ``zero_share`` near 1 while ``worst_rank`` is far above the number of positives: ``lam`` is
      too small, positives do not reach the next negative. (If ``worst_rank`` is about the number of
      positives there is nothing left to gain.)
    * ``top_share`` near 1: ``lam`` is too large, every positive jumps to the top from wherever it
      stands, and the gradient, which then falls as ``1 / lam``, no longer tells near from far.
    * in between, ``relative_reach`` says how far ``lam`` looks in the units of this list; it grows
      as positives sink and shrinks as their number grows.

    Args:
        scores: ``(..., n)``, lists along the last dimension; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        lam, power, normalize, where, projection: as for :func:`rankreg_ext.rankreg_loss`, with its
            gradient ``"blackbox"``; of ``"two_sided"`` the figures show the upper side. What an
            :class:`rankreg_ext.nn.AdaptiveLam` gives in eval mode is a lam like any other.

    Returns:
        A named tuple of tensors ``scores.shape[:-1]``: float64, the number of positives int64.
        Shares and means over no items are NaN, so are ranks where a positive's score is, and so is
        ``relative_reach`` where any score is not finite.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([0.25, 0.0, 1.0, 0.5])
        >>> d = rankreg_diagnostics(scores, torch.tensor([True, False, False, False]), lam=0.25)
        >>> d.mean_rank, d.reach  # h = 2 * 3/4, so it is ranked at 0.25 + 0.375 instead
        (tensor(3., dtype=torch.float64), tensor(0.3750, dtype=torch.float64))
        >>> d.places_gained, d.negative_share  # past 0.5, not past 1: one place, one of 3 negatives
        (tensor(1., dtype=torch.float64), tensor(0.3333, dtype=torch.float64))

    Source: the derivation of the gradient in :mod:`rankreg_ext.reference`; these figures are ours.
    """
    name = "rankreg_diagnostics"
    _validate.scores(name, "scores", scores)
    positives = _validate.mask(name, "positives", positives, scores, "scores")
    where = torch.ones_like(positives) if where is None else where
    where = _validate.mask(name, "where", where, scores, "scores")
    _validate.lam(name, lam, scores)
    _validate.power(name, power)
    _validate.choice(name, "normalize", normalize, _ops.NORMALIZE)
    _validate.choice(name, "projection", projection, reference.PROJECTION)
    positives, negatives = positives & where, ~positives & where

    ranks = rank(scores, where=where)
    h = reference.rankreg_inner_gradient(ranks, positives, where, power, normalize)
    dtype = reference.compute_dtype(scores.dtype)
    if projection != "none":
        lam = (lam * reference.standardized(scores, where)[1]).to(dtype)
    step = lam * h.to(dtype)
    moved = scores.to(dtype) + step
    gained = (ranks - rank(moved, where=where)).double()

    best = torch.where(negatives & ~scores.isnan(), scores.to(dtype), -torch.inf)
    best = best.amax(-1, keepdim=True) if best.shape[-1] else best.new_empty((*best.shape[:-1], 1))
    to_the_top = (scores.to(dtype) < best) & (moved >= best)
    reach = _mean(step, positives)
    mean = _mean(scores, where).unsqueeze(-1)
    return RankRegDiagnostics(
        positives=positives.sum(-1),
        mean_rank=_mean(ranks, positives),
        worst_rank=_worst(ranks, positives),
        zero_share=_mean(gained == 0, positives),
        places_gained=_mean(gained, positives),
        top_share=_mean(to_the_top, positives),
        negative_share=_mean(gained.abs() > 0, negatives),
        reach=reach,
        relative_reach=reach / _mean((scores.double() - mean) ** 2, where).sqrt(),
    )


def _mean(x: Tensor, members: Tensor) -> Tensor:
    return torch.where(members, x.double(), 0).sum(-1) / members.sum(-1)


def _worst(ranks: Tensor, positives: Tensor) -> Tensor:
    if not ranks.shape[-1]:
        return ranks.new_full(ranks.shape[:-1], torch.nan, dtype=torch.float64)
    worst = torch.where(positives, ranks.double(), 0).amax(-1)
    return torch.where(positives.any(-1), worst, torch.nan)


def _text(value: Tensor, shown: int = 8) -> str:
    texts = [f"{v:.4g}" for v in value.flatten()[:shown].tolist()]
    return ", ".join(texts) + (", ..." if value.numel() > shown else "")
