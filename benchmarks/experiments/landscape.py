r"""The loss landscape of a rank loss, and its blackbox interpolation, computed with our op.

Ranks are the solution of a linear problem: over the permutations ``y`` of ``1 .. n``,

.. math:: y(s) = \mathrm{rk}(s) = \operatorname*{argmin}_y \; c(s, y), \quad c(s, y) = s \cdot y

(the largest score gets rank 1). A loss ``f(y)`` of the ranks is a step function of whatever the
scores depend on. The interpolation of Vlastelica et al. (ICLR 2020) replaces it by

.. math:: f_\lambda(s) = f(y_\lambda) - \frac{c(s, y(s)) - c(s, y_\lambda)}{\lambda}, \quad
          y_\lambda = \mathrm{rk}(s + \lambda g), \quad g = \frac{df}{dy}

which, for a loss linear in the ranks as the one here, is continuous, piecewise affine, nowhere
above ``f``, and has exactly the gradient that :func:`rankreg_ext.blackbox_rank` returns:
``(y_lambda - y) / lambda``.
"""

from __future__ import annotations

import torch
from torch import Tensor

import rankreg_ext


def mean_positive_rank(ranks: Tensor, positives: Tensor) -> Tensor:
    """The loss ``f(y)``: RankReg with power 1 and without normalisation. ``(..., n) -> (...,)``."""
    return (ranks * positives).sum(-1) / positives.sum(-1)


def interpolation(scores: Tensor, positives: Tensor, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """``f``, ``f_lambda`` and the gradient of the latter with respect to the scores.

    Args:
        scores: ``(..., n)``, lists along the last dimension.
        positives: ``(n,)`` or ``(..., n)`` bool.
        lam: the strength of the interpolation, in the unit of the scores.

    Returns:
        Two tensors ``(...,)`` and one ``(..., n)``, of the dtype of the scores.
    """
    scores = scores.detach().requires_grad_()
    ranks = rankreg_ext.blackbox_rank(scores, lam)
    loss = mean_positive_rank(ranks, positives)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)

    scores, ranks, loss = scores.detach(), ranks.detach(), loss.detach()
    # The op's backward is (y_lambda - y) / lambda; ranks are integers, which undoes its rounding.
    ranks_lam = (ranks + lam * gradient).round()
    cost_of_moving = (scores * ranks).sum(-1) - (scores * ranks_lam).sum(-1)
    return loss, mean_positive_rank(ranks_lam, positives) - cost_of_moving / lam, gradient


class LinearScorer:
    """A dozen items, three of them positive, scored by ``s(w) = b + X w`` with two weights ``w``.

    Positives lie further along both features than negatives, with some overlap, so that there is a
    best region of ``w`` and many steps on the way to it.
    """

    def __init__(self, items: int = 12, positives: int = 3, seed: int = 8) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.positives = torch.arange(items) < positives
        self.features = torch.randn(items, 2, generator=generator, dtype=torch.float64)
        self.features[self.positives] += torch.tensor([0.8, 0.5], dtype=torch.float64)
        self.offsets = torch.randn(items, generator=generator, dtype=torch.float64)
        self.offsets[self.positives] -= 1.0

    def scores(self, w: Tensor) -> Tensor:
        """``(..., items)`` scores for weights ``(..., 2)``."""
        return self.offsets + w.to(torch.float64) @ self.features.T
