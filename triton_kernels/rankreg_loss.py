"""The RankReg loss, and its gradient."""

from __future__ import annotations

from torch import Tensor

from .positive_ranks import _kernels


def rankreg_loss(
    scores: Tensor,
    positives: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    power: int,
    normalize: int,
    where: Tensor | None,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    return _kernels(scores).rankreg_loss(
        scores, positives, lam, lam_tensor, power, normalize, where, reduction
    )


def rankreg_loss_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    state: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    power: int,
    normalize: int,
    where: Tensor | None,
) -> Tensor:
    return _kernels(scores).rankreg_loss_backward(
        grad, scores, positives, state, lam, lam_tensor, power, normalize, where
    )
