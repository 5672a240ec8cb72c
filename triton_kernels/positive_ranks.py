"""Ranks of the positives among all items, and their blackbox gradient."""

from __future__ import annotations

from torch import Tensor

from . import tuning


def _kernels(scores: Tensor):
    """A program a list where one can hold it; else the list is streamed."""
    if scores.shape[-1] <= tuning.LIST_MOST:
        from . import positives_list as kernels
    else:
        from . import positives_stream as kernels
    return kernels


def positive_ranks(
    scores: Tensor,
    positives: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    where: Tensor | None,
) -> Tensor:
    return _kernels(scores).positive_ranks(scores, positives, lam, lam_tensor, where)


def positive_ranks_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    ranks: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    where: Tensor | None,
) -> Tensor:
    return _kernels(scores).positive_ranks_backward(
        grad, scores, positives, ranks, lam, lam_tensor, where
    )
