"""The specification: every function of this package in plain torch, written from the formulas.

Scores ``a`` form one list along the last dimension; everything before it is batch. Rank 1 is the
best item. The kernels must return *equal* ranks and gradients, so this page also fixes every
rounding: ``C`` below is the compute type, float64 for float64 input and float32 for all others.

==============  ==================================================================================
rank            ``rk(a)_i = 1 + #{k : a_k > a_i}``, and four other tie rules
perturbation    ``a+ = a + lam * g`` in C: one rounded product, one rounded sum
gradient        ``dL/da = (rk(a+) - rk(a)) / lam``: the exact difference, then one division in C
hinge           ``q_j = sum_{k in N} max(0, delta - (a_j - a_k))``, in float64, rounded once
RankReg         ``y = r / Z``, ``R = mean_{i in P} y_i^p``, ``h_i = dR/dy_i = p y_i^(p-1) / |P|``,
                ``dR/da = (y(a + lam h) - y(a)) / lam``
==============  ==================================================================================

A NaN score beats nothing, its own rank and gradient are NaN, and the others rank as if it were
absent. Masked items (``where`` false) count for nobody and have rank 0 and gradient 0, whatever
they hold. Arguments are not validated here; :mod:`rankreg_ext.functional` does that.

The functions work on any device and are the fallback wherever no kernel was built.

Sources: Vlastelica et al., "Differentiation of Blackbox Combinatorial Solvers" (ICLR 2020) and
Rolinek et al., "Optimizing Rank-based Metrics with Blackbox Differentiation" (CVPR 2020) for the
gradient; "Ranking Regularization for Critical Rare Classes" (CVPR 2023) for the regulariser.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NO_SECOND_DERIVATIVE = (
    "rankreg_ext: the blackbox gradient is piecewise constant and has no second derivative"
)
TIES = ("min", "max", "average", "dense", "ordinal")
GRADIENT = ("blackbox", "two_sided", "identity")
PROJECTION = ("none", "spread", "standardize")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type C in which perturbations and gradients are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rank_dtype(dtype: torch.dtype, n: int, ties: str = "min") -> torch.dtype:
    """The type of the ranks of a list of ``n`` items: a rank is never rounded.

    float32 holds every integer up to 2^24, but half-integers (average ties) only up to 2^23.
    """
    exact = 2**23 if ties == "average" else 2**24
    return torch.float64 if dtype == torch.float64 or n > exact else torch.float32


def rank(
    x: Tensor,
    dim: int = -1,
    *,
    descending: bool = True,
    ties: str = "min",
    where: Tensor | None = None,
) -> Tensor:
    """Ranks along ``dim``; see :func:`rankreg_ext.rank`."""
    if where is not None:
        where = where.expand(x.shape).movedim(dim, -1)
    ranks = _rank(x.detach().movedim(dim, -1), descending, ties, where)
    return ranks.movedim(-1, dim)


def _rank(x: Tensor, descending: bool, ties: str, where: Tensor | None) -> Tensor:
    n = x.shape[-1]
    dtype = rank_dtype(x.dtype, n, ties)
    if x.numel() == 0:
        return x.new_zeros(x.shape, dtype=dtype)

    x = _ordered(x)
    absent = x.isnan() if where is None else x.isnan() | ~where

    # Best item first, equal items in index order, absent items last.
    order = x.argsort(dim=-1, descending=descending, stable=True)
    last = absent.gather(-1, order).to(torch.uint8).argsort(dim=-1, stable=True)
    order = order.gather(-1, last)
    value, gone = x.gather(-1, order), absent.gather(-1, order)

    # A tie group is a run of equal values in that order.
    place = torch.arange(n, device=x.device).expand(x.shape)
    change = (value[..., 1:] != value[..., :-1]) | (gone[..., 1:] != gone[..., :-1])
    edge = change.new_ones((*x.shape[:-1], 1))
    starts, ends = torch.cat([edge, change], -1), torch.cat([change, edge], -1)
    first = torch.where(starts, place, 0).cummax(-1).values
    final = torch.where(ends, place, n).flip(-1).cummin(-1).values.flip(-1)

    if ties == "min":
        ranks = (first + 1).to(dtype)
    elif ties == "max":
        ranks = (final + 1).to(dtype)
    elif ties == "average":
        ranks = (first + final).to(dtype) / 2 + 1
    elif ties == "dense":
        ranks = starts.cumsum(-1).to(dtype)
    elif ties == "ordinal":
        ranks = (place + 1).to(dtype)
    else:
        raise ValueError(f"ties must be one of {TIES}, got {ties!r}")

    out = torch.zeros_like(ranks).scatter(-1, order, ranks).masked_fill(absent, torch.nan)
    return out if where is None else torch.where(where, out, 0)


def _ordered(x: Tensor) -> Tensor:
    """The same order in a type that torch can sort, with -0.0 folded into 0.0."""
    if x.dtype == torch.uint64:
        return x.view(torch.int64) ^ torch.iinfo(torch.int64).min
    if x.dtype in (torch.uint16, torch.uint32):
        return x.to(torch.int64)
    return x + 0 if x.is_floating_point() else x.to(torch.int64)


def blackbox_rank(
    x: Tensor,
    lam: float | Tensor,
    dim: int = -1,
    *,
    descending: bool = True,
    ties: str = "min",
    where: Tensor | None = None,
) -> Tensor:
    """Ranks with the blackbox gradient; see :func:`rankreg_ext.blackbox_rank`."""
    if where is not None:
        where = where.expand(x.shape).movedim(dim, -1)
    return _BlackboxRank.apply(x.movedim(dim, -1), lam, descending, ties, where).movedim(-1, dim)


def blackbox_rank_backward(
    grad: Tensor,
    x: Tensor,
    ranks: Tensor,
    lam: float | Tensor,
    descending: bool,
    ties: str,
    where: Tensor | None,
) -> Tensor:
    """``(rk(x + lam g) - rk(x)) / lam``; for ascending ranks the perturbation is ``x - lam g``."""
    dtype = compute_dtype(x.dtype)
    lam = _scalar(lam, dtype, x.device)
    step = lam * grad.to(dtype)
    moved = x.to(dtype) + step if descending else x.to(dtype) - step
    delta = _rank(moved, descending, ties, where).to(ranks.dtype) - ranks
    return (delta.to(dtype) / lam).to(x.dtype)


class _BlackboxRank(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, lam, descending, ties, where):
        return _rank(x, descending, ties, where)

    @staticmethod
    def setup_context(ctx, inputs, ranks):
        x, lam, ctx.descending, ctx.ties, where = inputs
        ctx.lam = lam
        ctx.save_for_backward(x, ranks, where)

    @staticmethod
    def backward(ctx, grad):
        x, ranks, where = ctx.saved_tensors
        args = (ctx.lam, ctx.descending, ctx.ties, where)
        with torch.no_grad():
            gradient = blackbox_rank_backward(grad, x, ranks, *args)
        return _once_differentiable(gradient, grad, x), None, None, None, None


def _once_differentiable(gradient: Tensor, *sources: Tensor) -> Tensor:
    """``gradient``, whose own derivative by its sources is an error, never a silent zero."""
    if torch.compiler.is_compiling():  # compiled code refuses second derivatives by itself
        return gradient
    return _OnceDifferentiable.apply(gradient, *sources)


class _OnceDifferentiable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, *sources):
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def positive_ranks(
    scores: Tensor,
    positives: Tensor,
    *,
    lam: float | Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """Ranks of the positives among all; see :func:`rankreg_ext.positive_ranks`.

    By definition these are ordinary ranks read at the positives, so that the gradient is the
    ordinary blackbox gradient with ``g = 0`` outside the positives. The kernels reach the same
    numbers without a sort.
    """
    if where is not None:
        positives = positives & where
    ranks = rank(scores, where=where) if lam is None else blackbox_rank(scores, lam, where=where)
    return torch.where(positives, ranks, 0)


def rankreg_loss(
    scores: Tensor,
    positives: Tensor,
    *,
    lam: float | Tensor,
    power: int = 2,
    normalize: str = "length",
    where: Tensor | None = None,
    reduction: str = "mean",
    gradient: str = "blackbox",
    projection: str = "none",
) -> Tensor:
    """The RankReg term R; see :func:`rankreg_ext.rankreg_loss`."""
    if where is None:
        where = torch.ones_like(positives)
    where, positives = where.expand(scores.shape), positives.expand(scores.shape) & where
    if (gradient, projection) != ("blackbox", "none"):
        fixed = scores.detach()
        value = rankreg_loss(
            fixed,
            positives,
            lam=lam,
            power=power,
            normalize=normalize,
            where=where,
            reduction=reduction,
        )
        slope = rankreg_gradient(
            fixed, positives, where, lam, power, normalize, gradient, projection
        )
        return with_gradient(scores, value, slope, positives, reduction)
    losses = _RankRegLoss.apply(scores, positives, lam, power, normalize, where)
    if reduction == "none":
        return losses.to(compute_dtype(scores.dtype))
    total = losses.sum()
    if reduction == "mean":
        total = total / positives.any(-1).sum().clamp(min=1)
    return total.to(compute_dtype(scores.dtype))


def rankreg_inner_gradient(
    ranks: Tensor, positives: Tensor, where: Tensor, power: int, normalize: str
) -> Tensor:
    """``h_i = p y_i^(p-1) / |P|`` on the positives, 0 elsewhere: float64, one division."""
    length, count = _length(where, normalize), positives.sum(-1, keepdim=True)
    h = power * _power(ranks.double(), power - 1) / (_power(length, power - 1) * count)
    return torch.where(positives, h, 0)


class _RankRegLoss(torch.autograd.Function):
    """One value per list, float64 until it is reduced."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores, positives, lam, power, normalize, where):
        # r^p is an integer, so the sum is exact, and its order irrelevant, below 2^53.
        ranks = torch.where(positives, _rank(scores, True, "min", where), 0).double()
        count = positives.sum(-1)
        scale = _power(_length(where, normalize).squeeze(-1), power) * count
        return torch.where(count > 0, _power(ranks, power).sum(-1) / scale, 0)

    @staticmethod
    def setup_context(ctx, inputs, losses):
        scores, positives, ctx.lam, ctx.power, ctx.normalize, where = inputs
        ctx.save_for_backward(scores, positives, where)

    @staticmethod
    def backward(ctx, grad):
        scores, positives, where = ctx.saved_tensors
        args = (ctx.lam, ctx.power, ctx.normalize, where)
        with torch.no_grad():
            gradient = rankreg_loss_backward(grad, scores, positives, *args)
        gradient = _once_differentiable(gradient, grad, scores)
        return gradient, None, None, None, None, None


def rankreg_loss_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    lam: float | Tensor,
    power: int,
    normalize: str,
    where: Tensor,
) -> Tensor:
    """``upstream * (y(a + lam h) - y(a)) / lam``, one upstream value per list."""
    dtype = compute_dtype(scores.dtype)
    lam = _scalar(lam, dtype, scores.device)
    ranks = _rank(scores, True, "min", where)
    h = rankreg_inner_gradient(ranks, positives, where, power, normalize)
    moved = scores.to(dtype) + lam * h.to(dtype)
    delta = _rank(moved, True, "min", where).to(ranks.dtype) - ranks

    # (r' - r) / (Z lam): the divisor is rounded once to C.
    divisor = (_length(where, normalize) * lam.double()).to(dtype)
    grad = grad.to(dtype).unsqueeze(-1) * (delta.to(dtype) / divisor)
    return torch.where(where, grad, 0).to(scores.dtype)


def rankreg_gradient(
    scores: Tensor,
    positives: Tensor,
    where: Tensor,
    lam: float | Tensor,
    power: int,
    normalize: str,
    gradient: str,
    projection: str,
    ranks: Tensor | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``dR/da`` of each list by any of the rules, ``(..., n)``, float64.

    With ``b`` the projected scores, ``s`` their unit in units of ``a``,

    ===========  ===================================================================================
    blackbox     ``dR/db = (y(b + lam h) - y(b)) / lam``
    two_sided    ``dR/db = (y(b + lam h) - y(b - lam h)) / (2 lam)``
    identity     ``dR/db = -h``, as if the ranks were ``-b``
    none         ``b = a``, ``s = 1``
    spread       ``b = a / s``, s the standard deviation, a constant: ``dR/da = dR/db / s``
    standardize  ``b = (a - mean) / s``, of which neither is a constant
    ===========  ===================================================================================

    A projection keeps the order, so ``y(b + lam h)`` is counted as ``y(a + (lam s) h)``: no score
    is rounded on its way to the comparison, and ``y`` itself is what it was. ``s`` is a sum, whose
    last digit is the device's own. The kernels pass the ranks of the positives, and
    ``change(step)``, which is ``rk(a + step) - rk(a)``.
    """
    dtype = compute_dtype(scores.dtype)
    if ranks is None:
        ranks = _rank(scores, True, "min", where)
    if change is None:

        def change(step):
            return _rank(scores.to(dtype) + step, True, "min", where).to(ranks.dtype) - ranks

    h = rankreg_inner_gradient(ranks, positives, where, power, normalize)
    standard, unit = (None, 1) if projection == "none" else standardized(scores, where)
    if gradient == "identity":
        slope = torch.where(positives, -h, 0)
    else:
        lam = _scalar(lam, dtype, scores.device)
        reach = (lam.double() * unit).clamp(max=torch.finfo(dtype).max).to(dtype)
        step = torch.where(positives, reach * h.to(dtype), 0)
        places = change(step).double()
        if gradient == "two_sided":
            places = (places - change(-step).double()) / 2
        slope = places / (_length(where, normalize) * lam.double())
    if projection == "standardize":
        some = _finite(scores, where)
        mean, along = (
            torch.where(some, x, 0).sum(-1, keepdim=True) / some.sum(-1, keepdim=True).clamp(min=1)
            for x in (slope, slope * standard)
        )
        slope = slope - torch.where(some, mean + along * standard, 0)
    slope = torch.where(scores.isnan(), torch.nan, slope / unit)
    return torch.where(where, slope, 0)


def standardized(scores: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """``(a - mean) / s`` and the standard deviation ``s`` of each list: float64, ``(..., n | 1)``.

    Both are over the finite unmasked items; the others have the value 0. A list without spread has
    ``s = 1``. In units of the largest score, equal ones have exactly no spread, and no square
    overflows.
    """
    some = _finite(scores, where)
    x = torch.where(some, scores.double(), 0)
    if not x.shape[-1]:
        return x, x.new_ones((*x.shape[:-1], 1))
    count = some.sum(-1, keepdim=True).clamp(min=1)
    largest = x.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    x = x / largest
    x = torch.where(some, x - x.sum(-1, keepdim=True) / count, 0)
    deviation = (x.square().sum(-1, keepdim=True) / count).sqrt()
    flat = deviation * largest == 0
    return x / torch.where(flat, 1, deviation), torch.where(flat, 1, deviation * largest)


def _finite(scores: Tensor, where: Tensor) -> Tensor:
    return where & scores.isfinite()


def with_gradient(
    scores: Tensor, value: Tensor, gradient: Tensor, positives: Tensor, reduction: str
) -> Tensor:
    """``value``, reduced already, with each list's ``gradient`` by the scores."""
    if reduction == "mean":
        gradient = gradient / positives.any(-1).sum().clamp(min=1)
    return _WithGradient.apply(scores, value, gradient.to(compute_dtype(scores.dtype)))


class _WithGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores, value, gradient):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        scores, _, gradient = inputs
        ctx.save_for_backward(scores, gradient)

    @staticmethod
    def backward(ctx, grad):
        scores, gradient = ctx.saved_tensors
        with torch.no_grad():
            gradient = (grad.to(gradient.dtype).unsqueeze(-1) * gradient).to(scores.dtype)
        return _once_differentiable(gradient, grad, scores), None, None


def _length(where: Tensor, normalize: str) -> Tensor:
    """Z of each list, float64: its number of unmasked items, or 1."""
    length = where.sum(-1, keepdim=True).double()
    return length if normalize == "length" else torch.ones_like(length)


def _power(x: Tensor, exponent: int) -> Tensor:
    """``x ** exponent`` as repeated multiplication, which every back-end rounds alike."""
    out = torch.ones_like(x)
    for _ in range(exponent):
        out = out * x
    return out


def _scalar(lam: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(lam, Tensor):
        return lam.detach().to(device=device, dtype=dtype)
    return torch.full((), lam, dtype=dtype, device=device)


def roc_auc(scores: Tensor, positives: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Share of the (positive, negative) pairs in the right order, a tie counting one half.

    NaN where a list has no such pair, or holds a NaN score.
    """
    return _per_list(_roc_auc, scores, positives, where)


def _roc_auc(positive: Tensor, negative: Tensor) -> Tensor:
    wins = (positive[:, None] > negative).sum() * 2 + (positive[:, None] == negative).sum()
    return wins.double() / (2 * positive.numel() * negative.numel())


def fpr_at_tpr(
    scores: Tensor, positives: Tensor, tpr: float = 0.98, *, where: Tensor | None = None
) -> Tensor:
    """Share of negatives at or above the highest threshold that keeps ``tpr`` of the positives.

    NaN where a list has no positive, no negative, or a NaN score.
    """

    def one(positive: Tensor, negative: Tensor) -> Tensor:
        best_first = positive.sort(descending=True).values
        kept = torch.arange(1, len(positive) + 1, device=scores.device).double() / len(positive)
        threshold = best_first[kept >= tpr][0]
        return (negative >= threshold).sum().double() / negative.numel()

    return _per_list(one, scores, positives, where)


def _per_list(metric, scores: Tensor, positives: Tensor, where: Tensor | None) -> Tensor:
    where = torch.ones_like(positives) if where is None else where
    shape, n = scores.shape[:-1], scores.shape[-1]
    lists = math.prod(shape)
    rows = (t.expand(scores.shape).reshape(lists, n) for t in (scores, positives, where))
    values = []
    for a, p, w in zip(*rows, strict=True):
        defined = (p & w).any() and (~p & w).any() and not a[w].isnan().any()
        values.append(metric(a[p & w], a[~p & w]) if defined else a.new_full((), torch.nan))
    empty = scores.new_zeros(shape, dtype=torch.float64)
    return torch.stack(values).double().reshape(shape) if values else empty


def hinge_violations(
    scores: Tensor,
    positives: Tensor,
    delta: float | Tensor,
    where: Tensor | None = None,
) -> Tensor:
    """Every pair, one positive after the other; see :func:`rankreg_ext.losses.hinge_violations`.

    Kernels sum the same terms in another order: they agree to the rounding of float64, and so, for
    other scores, nearly always to the last bit. Not differentiable: see the function below.
    """
    a, positive, negative = _hinge_parts(scores, positives, where)
    q = torch.zeros_like(a)
    for j in range(scores.shape[-1]):
        hinges = torch.where(negative, _hinge(a, j, delta), 0).sum(-1)
        q[..., j] = torch.where(
            positive[..., j], torch.where(a[..., j].isnan(), torch.nan, hinges), 0
        )
    return q.to(compute_dtype(scores.dtype))


def hinge_violations_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    delta: float | Tensor,
    where: Tensor | None = None,
) -> Tensor:
    """The gradient at the scores from that at q: ``u_j`` for either end of a violating pair."""
    a, positive, negative = _hinge_parts(scores, positives, where)
    u = torch.where(positive & ~a.isnan(), grad.double(), 0)
    gradient = torch.zeros_like(a)
    for j in range(scores.shape[-1]):
        pairs = negative & (_hinge(a, j, delta) > 0) & positive[..., j : j + 1]
        gradient += torch.where(pairs, u[..., j : j + 1], 0)
        own = -u[..., j] * pairs.sum(-1)
        gradient[..., j] = torch.where(positive[..., j], own, gradient[..., j])
    absent = a.isnan() if where is None else a.isnan() & where
    return gradient.masked_fill(absent, torch.nan).to(scores.dtype)


def _hinge_parts(scores: Tensor, positives: Tensor, where: Tensor | None):
    a = scores.detach().double()
    where = torch.ones_like(positives) if where is None else where.expand(a.shape)
    positives = positives.expand(a.shape)
    return a, positives & where, ~positives & where & ~a.isnan()


def _hinge(a: Tensor, j: int, delta: float | Tensor) -> Tensor:
    """``max(0, delta - (a_j - a_k))`` for every k; of a pair at the same infinity, 0."""
    threshold = a[..., j : j + 1] - delta
    return torch.where(a > threshold, a - threshold, 0)
