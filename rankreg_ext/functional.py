"""The public functions: validation, choice of back-end, and autograd on the hot path.

Eager calls go through a Python ``autograd.Function`` around the registered op, which costs about
half of the dispatcher's own autograd rule. Such a Function takes the scores and one tuple of all
the rest, and is applied past ``Function.apply``, which only prepares calls for ``torch.func``: both
matter in a call of a few microseconds. Under ``torch.compile`` and ``torch.func`` the op is called
as it is, and the rules in :mod:`rankreg_ext._ops` apply. Both give the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _AutoDispatchBelowAutograd
from torch._C._functorch import unwrap_if_dead

from . import _backend, _ops, _validate, reference


class _Kernels:
    """One set of ops as the functions below call them."""

    def __init__(self, op_set: _ops.OpSet):
        self.call = op_set.call
        for name in _ops.NAMES:
            setattr(self, name, getattr(op_set.ops, name).default)


_BEST, _TRITON = _Kernels(_ops.BEST), _Kernels(_ops.TRITON)


def rank(
    x: Tensor,
    dim: int = -1,
    *,
    descending: bool = True,
    ties: str = "min",
    where: Tensor | None = None,
) -> Tensor:
    r"""Ranks of the items of each list: ``1 + #{k : x_k > x_i}``, so that rank 1 is the highest.

    Not differentiable; see :func:`blackbox_rank`.

    Args:
        x: ``(..., n, ...)``, lists along ``dim``; float16, bfloat16, float32, float64 or integers.
        dim: dimension of the lists.
        descending: the highest value has rank 1; otherwise the lowest.
        ties: what equal values share: ``"min"`` the best of their ranks, ``"max"`` the worst,
            ``"average"`` the mean, ``"dense"`` the best, without gaps behind them; ``"ordinal"``
            nothing, the earlier index ranks better.
        where: bool, broadcastable to ``x``; items where it is false count for nobody and have
            rank 0.

    Returns:
        The ranks, of the shape of ``x``: float32, and float64 for float64 input and for lists too
        long to have exact ranks in float32 (2^24 items; 2^23 for ``"average"``). A NaN has rank NaN
        and the others rank as if it were absent.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> rank(torch.tensor([0.3, 0.1, 0.7, 0.6, 0.8]))
        tensor([4., 5., 2., 3., 1.])
        >>> rank(torch.tensor([5, 5, 1]), ties="average")
        tensor([1.5000, 1.5000, 3.0000])

    Source: the rank function of "Ranking Regularization for Critical Rare Classes" (CVPR 2023).
    """
    _validate.scores("rank", "x", x, integers=True)
    dim = _validate.dimension("rank", dim, x)
    tie_rule = _validate.ties("rank", ties)
    if where is not None:
        where = _validate.mask("rank", "where", where, x, "x")
    if x.requires_grad:
        x = x.detach()
    kernels = _kernels("rank", x)
    if kernels is None:
        return reference.rank(x, dim, descending=descending, ties=ties, where=where)
    if dim == x.dim() - 1:
        return kernels.rank(x, descending, tie_rule, where)
    where = None if where is None else where.movedim(dim, -1)
    return kernels.rank(x.movedim(dim, -1), descending, tie_rule, where).movedim(-1, dim)


def blackbox_rank(
    x: Tensor,
    lam: float | Tensor,
    dim: int = -1,
    *,
    descending: bool = True,
    ties: str = "min",
    where: Tensor | None = None,
) -> Tensor:
    r"""Ranks whose gradient is the blackbox interpolation of Vlastelica et al. (ICLR 2020).

    With ``g`` the gradient that arrives at the ranks,

    .. math:: \partial L / \partial x = (\mathrm{rk}(x + \lambda g) - \mathrm{rk}(x)) / \lambda

    (for ascending ranks the perturbation is ``-lam * g``). ``lam`` multiplies whatever scale ``g``
    has: a loss weight, a batch mean or an AMP loss scale changes which items change places.
    :func:`rankreg_loss` is free of that. Half precision is perturbed and compared in float32.

    Args:
        x: ``(..., n, ...)``, float16, bfloat16, float32 or float64.
        lam: the interpolation's strength, positive; a float, or a 0-dim tensor on the device of
            ``x``, whose value is neither read on the host nor checked.
        dim, descending, ties, where: as for :func:`rank`.

    Returns:
        The ranks, as :func:`rank` gives them, differentiable once. The gradient has the dtype of
        ``x``, is 0 at masked items and NaN at NaN scores.

    Raises:
        TypeError, ValueError: for an argument that is not as described.
        RuntimeError: on a second differentiation.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        >>> blackbox_rank(x, lam=2.0)[0].backward()
        >>> x.grad
        tensor([-0.5000,  0.5000,  0.0000])

    Source: Vlastelica et al., ICLR 2020, algorithm 1; Rolinek et al., CVPR 2020, for ranks.
    """
    _validate.scores("blackbox_rank", "x", x)
    dim = _validate.dimension("blackbox_rank", dim, x)
    tie_rule = _validate.ties("blackbox_rank", ties)
    lam, lam_tensor = _validate.lam("blackbox_rank", lam, x)
    if where is not None:
        where = _validate.mask("blackbox_rank", "where", where, x, "x")
    kernels = _kernels("blackbox_rank", x)
    if kernels is None:
        lam = lam if lam_tensor is None else lam_tensor
        return reference.blackbox_rank(x, lam, dim, descending=descending, ties=ties, where=where)
    moved = dim != x.dim() - 1
    if moved:
        x = x.movedim(dim, -1)
        where = None if where is None else where.movedim(dim, -1)
    if _is_traced():
        args = (x, lam, lam_tensor, descending, tie_rule, where)
        out = kernels.call("blackbox_rank", *args)
    elif x.requires_grad and torch.is_grad_enabled():
        args = kernels, lam, lam_tensor, descending, tie_rule, where
        out = _blackbox_rank(unwrap_if_dead(x), args)
    else:
        out = kernels.rank(x.detach() if x.requires_grad else x, descending, tie_rule, where)
    return out.movedim(-1, dim) if moved else out


class _BlackboxRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, args):
        kernels, lam, lam_tensor, descending, ties, where = args
        ranks = kernels.rank(x, descending, ties, where)
        ctx.save_for_backward(x, ranks, lam_tensor, where)
        ctx.args = kernels, lam, descending, ties
        return ranks

    @staticmethod
    def backward(ctx, grad):
        x, ranks, lam_tensor, where = ctx.saved_tensors
        kernels, lam, descending, ties = ctx.args
        args = (grad, x, ranks, lam, lam_tensor, descending, ties, where)
        return _gradient(kernels.blackbox_rank_backward, args), None


_blackbox_rank = super(torch.autograd.Function, _BlackboxRank).apply


def positive_ranks(
    scores: Tensor,
    positives: Tensor,
    *,
    lam: float | Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    r"""Ranks of the positives among all items of their list, without sorting the list.

    ``r_i = 1 + #{k : a_k > a_i}`` for positive ``i``: the scores are compared with the few
    thresholds that the positives are. The gradient, too, is counted and not sorted.

    Args:
        scores: ``(..., n)``, lists along the last dimension; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        lam: strength of the blackbox gradient, as in :func:`blackbox_rank`; None: no gradient.
        where: bool, broadcastable to ``scores``; masked items count for nobody.

    Returns:
        ``(..., n)``: the ranks at the positives, 0 elsewhere; dtype as :func:`rank`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.
        RuntimeError: on a second differentiation.

    Example:
        >>> scores = torch.tensor([0.3, 0.1, 0.7, 0.6, 0.8])
        >>> positive_ranks(scores, torch.tensor([True, False, False, True, False]))
        tensor([4., 0., 0., 3., 0.])
    """
    _validate.scores("positive_ranks", "scores", scores)
    positives = _validate.mask("positive_ranks", "positives", positives, scores, "scores")
    if where is not None:
        where = _validate.mask("positive_ranks", "where", where, scores, "scores")
    differentiable = lam is not None
    lam, lam_tensor = (
        _validate.lam("positive_ranks", lam, scores) if differentiable else (1.0, None)
    )
    kernels = _kernels("positive_ranks", scores)
    if kernels is None:
        if differentiable:
            lam = lam if lam_tensor is None else lam_tensor
            return reference.positive_ranks(scores, positives, lam=lam, where=where)
        return reference.positive_ranks(scores, positives, where=where)
    args = (positives, lam, lam_tensor, where)
    if not differentiable and scores.requires_grad:
        scores = scores.detach()
    if _is_traced():
        return kernels.call("positive_ranks", scores, *args)
    if scores.requires_grad and torch.is_grad_enabled():
        return _positive_ranks(unwrap_if_dead(scores), (kernels, *args))
    with _AutoDispatchBelowAutograd():
        return kernels.positive_ranks(scores, *args)


class _PositiveRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, args):
        ctx.kernels, positives, ctx.lam, lam_tensor, where = args
        with _AutoDispatchBelowAutograd():
            ranks = ctx.kernels.positive_ranks(scores, *args[1:])
        ctx.save_for_backward(scores, positives, ranks, lam_tensor, where)
        return ranks

    @staticmethod
    def backward(ctx, grad):
        scores, positives, ranks, lam_tensor, where = ctx.saved_tensors
        args = (grad, scores, positives, ranks, ctx.lam, lam_tensor, where)
        return _gradient(ctx.kernels.positive_ranks_backward, args), None


_positive_ranks = super(torch.autograd.Function, _PositiveRanks).apply


def rankreg_loss(
    scores: Tensor,
    positives: Tensor,
    *,
    lam: float | Tensor = 5.0,
    power: int = 2,
    normalize: str = "length",
    where: Tensor | None = None,
    reduction: str = "mean",
    gradient: str = "blackbox",
    projection: str = "none",
) -> Tensor:
    r"""The rank regulariser: it grows as positives sink in the list sorted by score.

    Of one list with positives P, with ranks ``r`` and ``y = r / Z``:

    .. math:: R = \frac{1}{|P|} \sum_{i \in P} y_i^p, \qquad
        \frac{\partial R}{\partial a} = \frac{y(a + \lambda h) - y(a)}{\lambda}, \qquad
        h_i = \frac{p\, y_i^{p-1}}{|P|} \; (i \in P), \; 0 \text{ elsewhere}

    ``h`` is the list's own inner gradient and everything upstream multiplies afterwards. So ``lam``
    is in units of the score whatever weight, batch mean or AMP loss scale follows. No sort is made:
    one pass over the scores forward and one backward, with memory for the positives alone.

    The exact normalisation, power and lam of the paper are not public to us; ``power`` and
    ``normalize`` cover the plausible readings and the default of ``lam`` is our own.

    ``gradient`` and ``projection`` choose variants. They change the gradient and never the value,
    and the same holds for each: what is upstream multiplies afterwards.

    Args:
        scores: ``(..., n)``, lists along the last dimension; float16, bfloat16, float32, float64.
            Logits, rather than probabilities: these saturate into ties.
        positives: bool, broadcastable to ``scores``.
        lam: how far, in units of the score, a positive looks for the next better place; positive;
            a float or a 0-dim tensor on the device of the scores.
        power: p, an integer of at least 1.
        normalize: ``"length"``: Z is the number of unmasked items; ``"none"``: Z = 1.
        where: bool, broadcastable to ``scores``; masked items count for nobody.
        reduction: ``"mean"`` over the lists that have a positive (0 if none has), ``"sum"``, or
            ``"none"``, one value per list, 0 for a list without a positive.
        gradient: ``"blackbox"``, as above; ``"two_sided"``:
            ``(y(a + lam h) - y(a - lam h)) / (2 lam)``, which also keeps positives clear of the
            negatives just below; ``"identity"``: ``-h``, as if the ranks were ``-a``: ``lam`` is
            not used, and negatives have no gradient but through ``projection="standardize"``.
        projection: what is ranked instead of ``a``, with m and s the mean and the standard
            deviation (division by the number) of the list's finite unmasked scores: ``"none"``;
            ``"spread"``: ``a / s``, s being a constant; ``"standardize"``: ``(a - m) / s`` with its
            own gradient, which does not change m and s, so that scores cannot shrink together. In
            both ``lam`` is in units of s. Without spread s is 1.

    Returns:
        0-dim, or ``scores.shape[:-1]`` for ``"none"``: float32, float64 for float64 scores.
        Differentiable once. NaN where a positive's score is NaN.

    Raises:
        TypeError, ValueError: for an argument that is not as described.
        RuntimeError: on a second differentiation.

    Example:
        >>> scores = torch.tensor([0.3, 0.1, 0.7, 0.6], requires_grad=True)
        >>> loss = rankreg_loss(scores, torch.tensor([True, False, False, False]), lam=1.0)
        >>> loss  # the positive has rank 3 of 4: (3/4)^2
        tensor(0.5625, grad_fn=<_RankRegLossBackward>)
        >>> loss.backward()
        >>> scores.grad  # moved by h = 2 * 3/4 it gains two places and two negatives lose one
        tensor([-0.5000,  0.0000,  0.2500,  0.2500])

    Source: "Ranking Regularization for Critical Rare Classes" (CVPR 2023) for the idea; the
    normalisation and the decoupled inner gradient are this package's. Negative identity and its
    projection, which is ``"standardize"`` but for a factor sqrt(n): Sahoo et al., "Backpropagation
    through Combinatorial Algorithms: Identity with Projection Works" (ICLR 2023).
    """
    _validate.scores("rankreg_loss", "scores", scores)
    positives = _validate.mask("rankreg_loss", "positives", positives, scores, "scores")
    if where is not None:
        where = _validate.mask("rankreg_loss", "where", where, scores, "scores")
    _validate.power("rankreg_loss", power)
    lam, lam_tensor = _validate.lam("rankreg_loss", lam, scores)
    norm = _validate.choice("rankreg_loss", "normalize", normalize, _ops.NORMALIZE)
    reduce = _validate.choice("rankreg_loss", "reduction", reduction, _ops.REDUCTION)
    kernels = _kernels("rankreg_loss", scores)
    if gradient != "blackbox" or projection != "none":
        rule = (lam if lam_tensor is None else lam_tensor, power, normalize, gradient, projection)
        return _rankreg_variant(kernels, scores, positives, where, reduction, *rule)
    if kernels is None:
        return reference.rankreg_loss(
            scores,
            positives,
            lam=lam if lam_tensor is None else lam_tensor,
            power=power,
            normalize=normalize,
            where=where,
            reduction=reduction,
        )
    args = (positives, lam, lam_tensor, power, norm, where, reduce)
    if _is_traced():
        return kernels.call("rankreg_loss", scores, *args)[0]
    if scores.requires_grad and torch.is_grad_enabled():
        return _rankreg_loss(unwrap_if_dead(scores), (kernels, *args))
    with _AutoDispatchBelowAutograd():
        return kernels.rankreg_loss(scores, *args)[0]


class _RankRegLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, args):
        kernels, positives, lam, lam_tensor, power, normalize, where, _ = args
        # Past the op's Python autograd rule, which this Function stands in for.
        with _AutoDispatchBelowAutograd():
            loss, state = kernels.rankreg_loss(scores, *args[1:])
        ctx.save_for_backward(scores, positives, state, lam_tensor, where)
        ctx.args = kernels, lam, power, normalize
        return loss

    @staticmethod
    def backward(ctx, grad):
        scores, positives, state, lam_tensor, where = ctx.saved_tensors
        kernels, lam, power, normalize = ctx.args
        args = (grad, scores, positives, state, lam, lam_tensor, power, normalize, where)
        return _gradient(kernels.rankreg_loss_backward, args), None


_rankreg_loss = super(torch.autograd.Function, _RankRegLoss).apply


def _rankreg_variant(
    kernels, scores, positives, where, reduction, lam, power, normalize, gradient, projection
):
    """The value by the fused op; the gradient, known beforehand, from the positives' ops."""
    _validate.choice("rankreg_loss", "gradient", gradient, reference.GRADIENT)
    _validate.choice("rankreg_loss", "projection", projection, reference.PROJECTION)
    if kernels is None:
        return reference.rankreg_loss(
            scores,
            positives,
            lam=lam,
            power=power,
            normalize=normalize,
            where=where,
            reduction=reduction,
            gradient=gradient,
            projection=projection,
        )
    fixed = scores.detach()
    norm, reduce = _ops.NORMALIZE.index(normalize), _ops.REDUCTION.index(reduction)
    value, _ = kernels.call("rankreg_loss", fixed, positives, 1.0, None, power, norm, where, reduce)
    if not _is_traced() and not (scores.requires_grad and torch.is_grad_enabled()):
        return value
    where = torch.ones_like(positives) if where is None else where
    positives = positives & where
    slope = reference.rankreg_gradient(
        fixed,
        positives,
        where,
        lam,
        power,
        normalize,
        gradient,
        projection,
        *_ranks_and_change(kernels, fixed, positives, where),
    )
    return reference.with_gradient(scores, value, slope, positives, reduction)


def _ranks_and_change(kernels, scores, positives, where):
    """The positives' ranks, and what :func:`reference.rankreg_gradient` calls ``change``.

    That is the gradient op of positive_ranks for ``lam = 1``: it moves by the step itself, and the
    differences of ranks come back as they are.
    """
    if kernels is None:
        return reference.rank(scores, where=where), None
    scores = scores.to(reference.compute_dtype(scores.dtype))
    ranks = kernels.call("positive_ranks", scores, positives, 1.0, None, where)

    def change(step):
        args = (step.to(ranks.dtype), scores, positives, ranks, 1.0, None, where)
        return kernels.call("positive_ranks_backward", *args)

    return ranks, change


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or _are_functorch_transforms_active()


def _gradient(op, args):
    """A backward op; under ``create_graph`` with its rule, which forbids a second derivative."""
    if torch.is_grad_enabled():
        return op(*args)
    with _AutoDispatchBelowAutograd():
        return op(*args)


def _kernels(function: str, x: Tensor) -> _Kernels | None:
    """The kernels for x, None for plain torch; an explicit request that x cannot meet raises."""
    requested = _backend.requested()
    if requested == "auto":
        return _BEST
    if requested == "reference":
        return None
    devices = _backend.DEVICES[requested]
    if x.device.type not in devices:
        raise RuntimeError(
            f"{function}: backend {requested!r} was requested and needs tensors on "
            f"{' or '.join(devices)}, got {x.device}"
        )
    reason = _backend.usable(requested)
    if reason is not None:
        raise RuntimeError(
            f"{function}: backend {requested!r} was requested and is not usable: {reason}"
        )
    return _TRITON if requested == "triton" else _BEST
