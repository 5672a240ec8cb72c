"""The paper's base losses, its baseline ALM, and ranking terms over several classes.

The eight base losses are those of the published evaluation of ALM (Sangalli et al., NeurIPS 2021),
which RankReg is compared in. The critical class is class 1. The binary losses come as modules and
as functions; with ``z`` a logit, ``sg`` the sigmoid and ``-log sg`` always in its stable form:

====================  ============================  ============================================
loss                  target 1                      target 0
====================  ============================  ============================================
BCE                   ``-log sg(z)``                ``-log sg(-z)``
SymmetricMargin       ``-log sg(z - m)``            ``-log sg(-(z + m))``
AsymmetricMargin      ``-log sg(z - m)``            ``-log sg(-z)``
SymmetricFocal        ``-sg(-z)^g log sg(z)``       ``-sg(z)^g log sg(-z)``
AsymmetricFocal       ``-log sg(z)``                ``-sg(z)^g log sg(-z)``
WeightedBCE           ``-w log sg(z)``              ``-log sg(-z)``
ClassBalancedBCE      ``-w_1 log sg(z)``            ``-w_0 log sg(-z)``
====================  ============================  ============================================

Their conventions, once for all:

* **logits** are of any shape and a floating-point dtype, **targets** of the same shape: bool,
  integer or floating point, 0 or 1. The values are not checked, which would make the host wait; a
  floating-point target between 0 and 1 mixes the two columns.
* **weight** multiplies the items and is broadcastable to the logits. ``"mean"`` divides by the
  number of items all the same, as torch's binary losses do; the mean over no items is 0.
* The result is float32, and float64 for float64 logits. Half precision is computed in float32: sums
  and weights do not overflow. The gradient has the dtype of the logits.
* **eps** of the margin and focal losses: the published code adds 1e-4 inside each logarithm,
  ``-log(sg(x) + eps)``. That bounds the loss at ``-log(eps)``, 9.2 for 1e-4, lets it fall to
  ``-log(1 + eps)``, just below 0, and makes the gradient *vanish* for very wrong items, those with
  x below about ``log(eps)``: they no longer learn. ``eps=0.0``, the default, is the formula itself:
  unbounded, with a gradient that goes to 1 there. Pass ``eps=1e-4`` to compare with published
  figures.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _AutoDispatchBelowAutograd
from torch._C._functorch import unwrap_if_dead

from . import _hinge, _ops, _validate
from .functional import _gradient, _is_traced, _kernels
from .nn import RankReg
from .reference import compute_dtype

__all__ = [
    "ALM",
    "BCE",
    "LDAM",
    "AsymmetricFocal",
    "AsymmetricMargin",
    "ClassBalancedBCE",
    "NormalizedLinear",
    "OneVersusRest",
    "SymmetricFocal",
    "SymmetricMargin",
    "WeightedBCE",
    "asymmetric_focal_loss",
    "asymmetric_margin_loss",
    "bce_loss",
    "class_balanced_bce_loss",
    "effective_number_weights",
    "hinge_violations",
    "ldam_loss",
    "symmetric_focal_loss",
    "symmetric_margin_loss",
    "weighted_bce_loss",
]


# --- binary losses: functions ---------------------------------------------------------------------


def bce_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy with logits.

    Args:
        logits: any shape; float16, bfloat16, float32, float64.
        targets: the same shape, 0 or 1; bool, integer or floating point.
        weight: broadcastable to the logits, or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        0-dim, or the shape of the logits for ``"none"``; float32, float64 for float64 logits.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> bce_loss(torch.tensor([0.0, 1e4]), torch.tensor([1, 0]), reduction="none")
        tensor([6.9315e-01, 1.0000e+04])
    """
    return _binary("bce_loss", logits, targets, weight, reduction, _wrong, _wrong)


def symmetric_margin_loss(
    logits: Tensor,
    targets: Tensor,
    margin: float = 0.5,
    *,
    eps: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy in which both classes must be right by a margin (S-ML).

    Args:
        logits, targets, weight, reduction: as for :func:`bce_loss`.
        margin: m in units of the logit; finite, at least 0. Published: 0.5, 2 or 4.
        eps: added inside the logarithms; see :mod:`rankreg_ext.losses`. Published: 1e-4.

    Returns:
        As :func:`bce_loss`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> logits = torch.tensor([0.5, -0.5])
        >>> symmetric_margin_loss(logits, torch.tensor([1, 0]), reduction="none")  # -log sg(0)
        tensor([0.6931, 0.6931])

    Source: the published code of ALM (Sangalli et al., NeurIPS 2021).
    """
    name = "symmetric_margin_loss"
    _number(name, "margin", margin)
    _number(name, "eps", eps)

    def term(z):
        return _wrong(z - margin, eps)

    return _binary(name, logits, targets, weight, reduction, term, term)


def asymmetric_margin_loss(
    logits: Tensor,
    targets: Tensor,
    margin: float = 0.5,
    *,
    eps: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy in which only the positives must be right by a margin (A-ML).

    Args:
        logits, targets, weight, reduction: as for :func:`bce_loss`.
        margin, eps: as for :func:`symmetric_margin_loss`.

    Returns:
        As :func:`bce_loss`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> logits = torch.tensor([0.5, 0.0])
        >>> asymmetric_margin_loss(logits, torch.tensor([1, 0]), reduction="none")
        tensor([0.6931, 0.6931])

    Source: Li, Kamnitsas and Glocker, "Overfitting of Neural Nets under Class Imbalance" (MICCAI
    2019), as in the published code of ALM.
    """
    name = "asymmetric_margin_loss"
    _number(name, "margin", margin)
    _number(name, "eps", eps)
    return _binary(
        name,
        logits,
        targets,
        weight,
        reduction,
        lambda z: _wrong(z - margin, eps),
        lambda z: _wrong(z, eps),
    )


def symmetric_focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 0.5,
    *,
    eps: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy in which both classes' easy items count less (S-FL).

    Args:
        logits, targets, weight, reduction: as for :func:`bce_loss`.
        gamma: g, the power of the probability of being wrong; finite, at least 0. Published: 0.5, 1
            or 2.
        eps: added inside the logarithms; see :mod:`rankreg_ext.losses`. Published: 1e-4.

    Returns:
        As :func:`bce_loss`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> symmetric_focal_loss(torch.tensor([0.0]), torch.tensor([1]), gamma=2.0)  # log(2) / 4
        tensor(0.1733)

    Source: Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017), without its class
    weight, as in the published code of ALM.
    """
    name = "symmetric_focal_loss"
    _number(name, "gamma", gamma)
    _number(name, "eps", eps)

    def term(z):
        return _focal(z, gamma, eps)

    return _binary(name, logits, targets, weight, reduction, term, term)


def asymmetric_focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 1.0,
    *,
    eps: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy in which only the easy negatives count less (A-FL).

    Args:
        logits, targets, weight, reduction: as for :func:`bce_loss`.
        gamma, eps: as for :func:`symmetric_focal_loss`.

    Returns:
        As :func:`bce_loss`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> logits, targets = torch.tensor([0.0, 0.0]), torch.tensor([1, 0])
        >>> asymmetric_focal_loss(logits, targets, reduction="none")  # log(2), log(2) / 2
        tensor([0.6931, 0.3466])

    Source: Li, Kamnitsas and Glocker (MICCAI 2019), as in the published code of ALM.
    """
    name = "asymmetric_focal_loss"
    _number(name, "gamma", gamma)
    _number(name, "eps", eps)
    return _binary(
        name,
        logits,
        targets,
        weight,
        reduction,
        lambda z: _wrong(z, eps),
        lambda z: _focal(z, gamma, eps),
    )


def weighted_bce_loss(
    logits: Tensor,
    targets: Tensor,
    positive_weight: float,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with a weight on the positives (W-BCE).

    Args:
        logits, targets, weight, reduction: as for :func:`bce_loss`.
        positive_weight: w; finite, at least 0. Published: the imbalance ratio times 1/3, 2/3 or 1.

    Returns:
        As :func:`bce_loss`. ``"mean"`` divides by the number of items, not of weights.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> logits, targets = torch.tensor([0.0, 0.0]), torch.tensor([1, 0])
        >>> weighted_bce_loss(logits, targets, 100.0, reduction="none")
        tensor([69.3147,  0.6931])
    """
    name = "weighted_bce_loss"
    _number(name, "positive_weight", positive_weight)
    return _binary(
        name, logits, targets, weight, reduction, lambda z: positive_weight * _wrong(z), _wrong
    )


def class_balanced_bce_loss(
    logits: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    beta: float = 0.99,
    *,
    rescale: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with the weights of :func:`effective_number_weights` on the classes (CB-BCE).

    Args:
        logits, targets, weight, reduction: as for :func:`bce_loss`.
        counts: the number of training samples of class 0 and of class 1; at least 1 each.
        beta: 0 or above and below 1. Published: 0.99, 0.999 or 0.9999.
        rescale: False, as in the published code of ALM: ``(1 - beta) / (1 - beta^n)`` as it is,
            which for 0.99 and 4,410 : 44 samples is 0.010 and 0.028, so that the loss as a whole is
            small. True, as Cui et al. do: the two weights are rescaled to sum to 2.

    Returns:
        As :func:`bce_loss`. ``"mean"`` divides by the number of items, not of weights.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> logits, targets = torch.tensor([0.0, 0.0]), torch.tensor([1, 0])
        >>> class_balanced_bce_loss(logits, targets, (2, 1), beta=0.5, reduction="none")
        tensor([0.6931, 0.4621])

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (CVPR 2019).
    """
    name = "class_balanced_bce_loss"
    w0, w1 = _effective_number_weights(name, counts, beta, rescale, classes=2)
    return _binary(
        name,
        logits,
        targets,
        weight,
        reduction,
        lambda z: w1 * _wrong(z),
        lambda z: w0 * _wrong(z),
    )


def effective_number_weights(
    counts: Sequence[int], beta: float = 0.9999, *, rescale: bool = True
) -> Tensor:
    """Class weights by the effective number of samples, ``(1 - beta) / (1 - beta^n_c)``.

    Args:
        counts: the number of training samples of each of C classes, at least 1 each: a sequence of
            integers.
        beta: 0 or above and below 1: 0 weights all classes alike, towards 1 the weights go to
            ``1 / n_c``.
        rescale: let the weights sum to C, as Cui et al. do.

    Returns:
        ``(C,)`` float32, on the CPU.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> effective_number_weights([3, 1], beta=0.5)  # 4/7 and 1, rescaled
        tensor([0.7273, 1.2727])

    Source: Cui et al. (CVPR 2019).
    """
    weights = _effective_number_weights("effective_number_weights", counts, beta, rescale)
    return torch.tensor(weights)


def _binary(
    function: str,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    reduction: str,
    positive: Callable[[Tensor], Tensor],
    negative: Callable[[Tensor], Tensor],
) -> Tensor:
    """``positive(z)`` for targets of 1 and ``negative(-z)`` for targets of 0."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{function}: logits must be a torch.Tensor, got {type(logits).__name__}")
    if logits.dtype not in _validate.FLOATS:
        raise TypeError(
            f"{function}: logits must have dtype float16, bfloat16, float32 or float64, "
            f"got {logits.dtype}"
        )
    _same_place(function, "targets", targets, logits, "logits")
    if targets.dtype.is_complex:
        raise TypeError(
            f"{function}: targets must be bool, integer or floating point, got {targets.dtype}"
        )
    if targets.shape != logits.shape:
        raise ValueError(
            f"{function}: targets must have the shape of logits, {tuple(logits.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    if weight is not None:
        _same_place(function, "weight", weight, logits, "logits")
        try:
            weight = weight.expand(logits.shape)
        except RuntimeError:
            raise ValueError(
                f"{function}: weight must be broadcastable to the shape of logits, "
                f"{tuple(logits.shape)}, got shape {tuple(weight.shape)}"
            ) from None
    _validate.choice(function, "reduction", reduction, _ops.REDUCTION)

    dtype = compute_dtype(logits.dtype)
    z, y = logits.to(dtype), targets.to(dtype)
    loss = y * positive(z) + (1 - y) * negative(-z)
    if weight is not None:
        loss = loss * weight.to(dtype)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total / max(loss.numel(), 1) if reduction == "mean" else total


def _wrong(z: Tensor, eps: float = 0.0) -> Tensor:
    """``-log(sg(z) + eps)``, z being the logit in favour of the target."""
    return -(z.sigmoid() + eps).log() if eps else -F.logsigmoid(z)


def _focal(z: Tensor, gamma: float, eps: float) -> Tensor:
    # A power by exp and log: that of a probability that underflows to 0 has no gradient.
    return (gamma * F.logsigmoid(-z)).exp() * _wrong(z, eps)


def _effective_number_weights(
    function: str,
    counts: Sequence[int],
    beta: float,
    rescale: bool,
    classes: int | None = None,
) -> list[float]:
    counts = _counts(function, counts, classes)
    _number(function, "beta", beta)
    if beta >= 1:
        raise ValueError(f"{function}: beta must be at least 0 and below 1, got {beta}")
    # 1 - beta^n without cancellation; beta = 0 has no logarithm.
    shares = [-math.expm1(n * math.log(beta)) if beta else 1.0 for n in counts]
    weights = [(1 - beta) / share for share in shares]
    scale = len(weights) / sum(weights) if rescale else 1.0
    return [scale * w for w in weights]


# --- binary losses: modules -----------------------------------------------------------------------


class BCE(nn.Module):
    """Binary cross-entropy with logits; see :func:`bce_loss`.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        ``forward(logits, targets, weight=None)``, as :func:`bce_loss` takes them; the same for the
        other binary losses.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> BCE()(torch.zeros(4), torch.tensor([1, 0, 0, 0]))
        tensor(0.6931)
    """

    def __init__(self, *, reduction: str = "mean"):
        super().__init__()
        _validate.choice(type(self).__name__, "reduction", reduction, _ops.REDUCTION)
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss."""
        return self._loss(logits, targets, weight=weight, reduction=self.reduction)

    def _loss(self, logits, targets, **options):
        return bce_loss(logits, targets, **options)

    def _settings(self) -> dict[str, object]:
        return {}

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        settings = {**self._settings(), "reduction": self.reduction}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


class SymmetricMargin(BCE):
    """S-ML; see :func:`symmetric_margin_loss`.

    Args:
        margin: m; the default is the published choice for CIFAR-10.
        eps: see there.
        reduction: see there.

    Example:
        >>> SymmetricMargin(margin=2.0)(torch.tensor([2.0]), torch.tensor([True]))
        tensor(0.6931)
    """

    function = staticmethod(symmetric_margin_loss)

    def __init__(self, margin: float = 0.5, *, eps: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        _number(type(self).__name__, "margin", margin)
        _number(type(self).__name__, "eps", eps)
        self.margin = margin
        self.eps = eps

    def _loss(self, logits, targets, **options):
        return self.function(logits, targets, self.margin, eps=self.eps, **options)

    def _settings(self) -> dict[str, object]:
        return {"margin": self.margin, "eps": self.eps}


class AsymmetricMargin(SymmetricMargin):
    """A-ML; see :func:`asymmetric_margin_loss`, and :class:`SymmetricMargin` for the arguments.

    Example:
        >>> AsymmetricMargin(margin=2.0)(torch.tensor([0.0]), torch.tensor([False]))
        tensor(0.6931)
    """

    function = staticmethod(asymmetric_margin_loss)


class SymmetricFocal(BCE):
    """S-FL; see :func:`symmetric_focal_loss`.

    Args:
        gamma: g; the default is the published choice for CIFAR-10 at 1:100.
        eps: see there.
        reduction: see there.

    Example:
        >>> SymmetricFocal(gamma=2.0)(torch.tensor([0.0]), torch.tensor([False]))
        tensor(0.1733)
    """

    function = staticmethod(symmetric_focal_loss)

    def __init__(self, gamma: float = 0.5, *, eps: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        _number(type(self).__name__, "gamma", gamma)
        _number(type(self).__name__, "eps", eps)
        self.gamma = gamma
        self.eps = eps

    def _loss(self, logits, targets, **options):
        return self.function(logits, targets, self.gamma, eps=self.eps, **options)

    def _settings(self) -> dict[str, object]:
        return {"gamma": self.gamma, "eps": self.eps}


class AsymmetricFocal(SymmetricFocal):
    """A-FL; see :func:`asymmetric_focal_loss`.

    Args:
        gamma: g; the default is the published choice for CIFAR-10 at 1:100.
        eps: see there.
        reduction: see there.

    Example:
        >>> AsymmetricFocal(gamma=2.0)(torch.tensor([0.0]), torch.tensor([True]))
        tensor(0.6931)
    """

    function = staticmethod(asymmetric_focal_loss)

    def __init__(self, gamma: float = 1.0, *, eps: float = 0.0, reduction: str = "mean"):
        super().__init__(gamma, eps=eps, reduction=reduction)


class WeightedBCE(BCE):
    """W-BCE, with weight ``c * ratio`` on the positives; see :func:`weighted_bce_loss`.

    Args:
        ratio: negatives per positive in the training data; finite, at least 0.
        c: share of it; finite, at least 0. The default is the published choice for CIFAR-10.
        reduction: see there.

    Example:
        >>> WeightedBCE(ratio=100, c=0.5)(torch.tensor([0.0]), torch.tensor([True]))  # 50 log(2)
        tensor(34.6574)
    """

    def __init__(self, ratio: float, c: float = 1 / 3, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        _number("WeightedBCE", "ratio", ratio)
        _number("WeightedBCE", "c", c)
        self.ratio = ratio
        self.c = c

    def _loss(self, logits, targets, **options):
        return weighted_bce_loss(logits, targets, self.c * self.ratio, **options)

    def _settings(self) -> dict[str, object]:
        return {"ratio": self.ratio, "c": self.c}


class ClassBalancedBCE(BCE):
    """CB-BCE; see :func:`class_balanced_bce_loss`.

    Args:
        counts: the number of training samples of class 0 and of class 1. (The published code takes
            the second to be the first divided by the ratio, rounded down.)
        beta: see there; the default is the published choice throughout.
        rescale: see there.
        reduction: see there.

    Example:
        >>> ClassBalancedBCE((2, 1), beta=0.5)(torch.tensor([0.0]), torch.tensor([False]))
        tensor(0.4621)
    """

    def __init__(
        self,
        counts: Sequence[int],
        beta: float = 0.99,
        *,
        rescale: bool = False,
        reduction: str = "mean",
    ):
        super().__init__(reduction=reduction)
        _effective_number_weights("ClassBalancedBCE", counts, beta, rescale, classes=2)
        self.counts = tuple(int(n) for n in counts)
        self.beta = beta
        self.rescale = bool(rescale)

    def _loss(self, logits, targets, **options):
        return class_balanced_bce_loss(
            logits, targets, self.counts, self.beta, rescale=self.rescale, **options
        )

    def _settings(self) -> dict[str, object]:
        return {"counts": self.counts, "beta": self.beta, "rescale": self.rescale}


# --- LDAM -----------------------------------------------------------------------------------------


def ldam_loss(
    cosines: Tensor,
    targets: Tensor,
    margins: Tensor,
    *,
    scale: float = 30.0,
    class_weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of ``scale * (x - m_y on the true class y)``: each class has its own margin.

    Args:
        cosines: ``(n, C)`` logits x of :class:`NormalizedLinear`, in [-1, 1]; float16, bfloat16,
            float32, float64.
        targets: ``(n,)`` classes, bool or integer. Their range is not checked here.
        margins: ``(C,)`` floating point, m.
        scale: positive and finite.
        class_weights: ``(C,)`` or None.
        reduction: ``"mean"``, by the sum of the items' class weights as torch's cross-entropy has
            it (0 for no items); ``"sum"`` or ``"none"``.

    Returns:
        0-dim, or ``(n,)`` for ``"none"``; float32, float64 for float64 cosines.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> cosines, margins = torch.tensor([[0.0, 0.5]]), torch.tensor([0.1, 0.5])
        >>> ldam_loss(cosines, torch.tensor([1]), margins)  # the margin takes all: log(2)
        tensor(0.6931)

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss"
    (NeurIPS 2019).
    """
    name = "ldam_loss"
    _validate.scores(name, "cosines", cosines)
    if cosines.dim() != 2:
        raise ValueError(
            f"{name}: cosines must have 2 dimensions, (n, classes), "
            f"got shape {tuple(cosines.shape)}"
        )
    n, classes = cosines.shape
    _classes(name, "targets", targets, cosines, "cosines", n, boolean=True)
    for argument, value in (("margins", margins), ("class_weights", class_weights)):
        if value is None and argument == "class_weights":
            continue
        _same_place(name, argument, value, cosines, "cosines")
        if value.shape != (classes,):
            raise ValueError(
                f"{name}: {argument} must have one entry per class, shape ({classes},), "
                f"got {tuple(value.shape)}"
            )
    _number(name, "scale", scale, above=True)
    _validate.choice(name, "reduction", reduction, _ops.REDUCTION)

    dtype = compute_dtype(cosines.dtype)
    x, targets = cosines.to(dtype), targets.long()
    true = targets.unsqueeze(-1) == torch.arange(classes, device=x.device)
    loss = F.cross_entropy(
        scale * (x - torch.where(true, margins.to(dtype), 0)), targets, reduction="none"
    )
    if class_weights is None:
        total = max(n, 1)
    else:
        weights = class_weights.to(dtype)[targets]
        loss, total = weights * loss, weights.sum()
        total = torch.where(total == 0, 1, total)
    if reduction == "none":
        return loss
    return loss.sum() / total if reduction == "mean" else loss.sum()


class LDAM(nn.Module):
    r"""Label-distribution-aware margins; see :func:`ldam_loss`.

    The margins are ``m_c = max_margin * n_c^(-1/4) / max n^(-1/4)``, the largest for the rarest
    class. The logits are the cosines of :class:`NormalizedLinear`. For ranking, the ROC curve,
    :class:`rankreg_ext.nn.RankReg` and :class:`ALM`, the score is the cosine of class 1:
    :meth:`scores`.

    *Deferred re-weighting* is a schedule of the user's: the original sets ``class_weights`` to
    ``effective_number_weights(counts, 0.9999)`` at epoch 160 of 200. ALM's evaluation has none. The
    margins follow from the arguments and the weights from the schedule, and neither is part of
    ``state_dict``.

    Args:
        counts: the number of training samples of each class, at least 1 each.
        max_margin: of the rarest class, in units of the cosine; finite, at least 0.
        scale: positive and finite.
        class_weights: ``(C,)`` tensor or None; may be assigned later, on the module's device.
        reduction: see :func:`ldam_loss`.

    Shape:
        ``forward(cosines, targets)`` takes ``(n, C)`` and ``(n,)``.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> loss = LDAM([10_000, 625])  # 10000^(1/4) = 10, 625^(1/4) = 5
        >>> loss.margins
        tensor([0.2500, 0.5000])
        >>> cosines = torch.tensor([[0.25, 0.25], [0.0, 0.5]])
        >>> loss.scores(cosines)
        tensor([0.2500, 0.5000])
        >>> loss.class_weights = effective_number_weights([10_000, 625], beta=0.9999)
    """

    margins: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        counts: Sequence[int],
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        class_weights: Tensor | None = None,
        reduction: str = "mean",
    ):
        super().__init__()
        self.counts = _counts("LDAM", counts)
        _number("LDAM", "max_margin", max_margin)
        _number("LDAM", "scale", scale, above=True)
        if class_weights is not None and (
            not isinstance(class_weights, Tensor) or class_weights.shape != (len(counts),)
        ):
            got = getattr(class_weights, "shape", type(class_weights).__name__)
            raise ValueError(
                f"LDAM: class_weights must be None or a tensor of shape ({len(counts)},), "
                f"got {tuple(got) if isinstance(got, torch.Size) else got}"
            )
        _validate.choice("LDAM", "reduction", reduction, _ops.REDUCTION)
        self.max_margin = max_margin
        self.scale = scale
        self.reduction = reduction
        margins = [max_margin * (min(self.counts) / n) ** 0.25 for n in self.counts]
        self.register_buffer("margins", torch.tensor(margins), persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, cosines: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        return ldam_loss(
            cosines,
            targets,
            self.margins,
            scale=self.scale,
            class_weights=self.class_weights,
            reduction=self.reduction,
        )

    @staticmethod
    def scores(cosines: Tensor, critical: int = 1) -> Tensor:
        """The scores to rank by: the cosine of the critical class, ``(..., C)`` to ``(...)``.

        Without margin and scale, as in the published code of ALM.
        """
        return cosines[..., critical]

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return (
            f"counts={self.counts}, max_margin={self.max_margin}, scale={self.scale}, "
            f"reduction={self.reduction!r}"
        )


class NormalizedLinear(nn.Module):
    """The head of LDAM: the cosines between features and one weight vector per class, no bias.

    Computed in float32 (float64 for float64 features), under autocast too: near 1 a bfloat16 cosine
    has steps of 1/256, which the scale multiplies by 30, and a ranking by such scores is full of
    ties. A feature vector of zeros has cosine 0 and a finite gradient.

    Args:
        in_features: length of the feature vectors, at least 1.
        out_features: classes, at least 1.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> head = NormalizedLinear(512)
        >>> head(torch.randn(8, 512)).shape
        torch.Size([8, 2])

    Source: the code published with LDAM and with ALM normalises both sides; the start, here normal
    and so uniform over directions, is ours.
    """

    def __init__(self, in_features: int, out_features: int = 2):
        super().__init__()
        _validate.integer("NormalizedLinear", "in_features", in_features, 1)
        _validate.integer("NormalizedLinear", "out_features", out_features, 1)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """The cosines."""
        _validate.scores("NormalizedLinear", "features", features)
        if features.shape[-1] != self.in_features:
            raise ValueError(
                f"NormalizedLinear: features must have {self.in_features} entries in the last "
                f"dimension, got shape {tuple(features.shape)}"
            )
        dtype = compute_dtype(features.dtype)
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(_unit(features.to(dtype)), _unit(self.weight.to(dtype)))

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    # A tiny number in the denominator would give rows of zeros its reciprocal for a gradient.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1)


# --- ALM ------------------------------------------------------------------------------------------


def hinge_violations(
    scores: Tensor, positives: Tensor, delta: float | Tensor, where: Tensor | None = None
) -> Tensor:
    r"""How far, in sum, the negatives come too close to each positive.

    .. math:: q_j = \sum_{k \in N} \max(0,\; \delta - (a_j - a_k)), \quad j \in P

    Pairs are not stored: memory is O(n) for a list of n items. On the CPU the thresholds
    :math:`a_j - \delta` of the positives are sorted, and the negatives between two of them summed
    up; going down the thresholds, q grows by each gap times the number of negatives above it. On
    GPUs the kernels in Triton sum over pairs in lists of up to 1024 items and along the sorted list
    in longer ones, those in CUDA C++ over pairs, so that their time grows with n times the number
    of positives. Elsewhere torch sorts the list. All are sums of positive terms, in float64,
    without a difference of large sums: the relative error is that of n roundings at worst. Kernels
    add in an order that does not change from run to run, each back-end in its own.

    The gradient is that of the formula, with :math:`[\cdot]` counting pairs:

    .. math::
        \frac{\partial L}{\partial a_j} = -u_j \sum_{k \in N} [a_k > a_j - \delta], \qquad
        \frac{\partial L}{\partial a_k} = \sum_{j \in P} u_j \, [a_k > a_j - \delta]

    with u the gradient that arrives at q. A pair exactly at the corner of the hinge has gradient 0,
    which is our choice. q is piecewise linear: its own second derivative is 0, and functions of it
    may be differentiated any number of times.

    Args:
        scores: ``(..., n)``, lists along the last dimension; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        delta: the margin, finite and at least 0; a float or a 0-dim tensor, whose value is neither
            read on the host nor checked and which gets no gradient.
        where: bool, broadcastable to ``scores``; masked items count for nobody and have value and
            gradient 0, whatever they hold.

    Returns:
        ``(..., n)``: q at the positives, 0 elsewhere; float32, float64 for float64 scores. Computed
        in float64 and rounded once. A NaN positive has NaN and pushes nobody; a NaN negative is
        absent; the gradient at either is NaN. Infinite scores are extreme values as any, and of a
        pair at the same infinity there is no violation.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([0.5, 0.0, 0.25, 1.0], requires_grad=True)
        >>> q = hinge_violations(scores, torch.tensor([True, False, False, False]), delta=0.5)
        >>> q  # 0 at the corner, 0.25 and 1
        tensor([1.2500, 0.0000, 0.0000, 0.0000], grad_fn=<_HingeViolationsBackward>)
        >>> q.sum().backward()
        >>> scores.grad
        tensor([-2.,  0.,  1.,  1.])

    Source: the constraint of Sangalli et al., "Constrained Optimization to Train Neural Networks on
    Critical and Under-Represented Classes" (NeurIPS 2021).
    """
    name = "hinge_violations"
    _validate.scores(name, "scores", scores)
    positives = _validate.mask(name, "positives", positives, scores, "scores")
    _validate.weight(name, "delta", delta)
    if where is not None:
        where = _validate.mask(name, "where", where, scores, "scores")
    kernels = _kernels(name, scores)
    if kernels is None:
        return _hinge.hinge_violations(scores, positives, delta, where)
    delta_tensor = None
    if isinstance(delta, Tensor):
        delta_tensor, delta = delta.detach(), 0.0
        if delta_tensor.device != scores.device:  # a number on the host, which torch hands over
            delta_tensor = delta_tensor + torch.zeros((), device=scores.device)
    args = (positives, float(delta), delta_tensor, where)
    if _is_traced():
        return kernels.call(name, scores, *args)
    if scores.requires_grad and torch.is_grad_enabled():
        return _hinge_violations(unwrap_if_dead(scores), (kernels, *args))
    with _AutoDispatchBelowAutograd():
        return kernels.hinge_violations(scores, *args)


class _HingeViolations(torch.autograd.Function):
    """As the Functions of :mod:`rankreg_ext.functional`."""

    @staticmethod
    def forward(ctx, scores, args):
        ctx.kernels, positives, ctx.delta, delta_tensor, where = args
        with _AutoDispatchBelowAutograd():
            q = ctx.kernels.hinge_violations(scores, *args[1:])
        ctx.save_for_backward(scores, positives, delta_tensor, where)
        return q

    @staticmethod
    def backward(ctx, grad):
        scores, positives, delta_tensor, where = ctx.saved_tensors
        args = (grad, scores, positives, ctx.delta, delta_tensor, where)
        return _gradient(ctx.kernels.hinge_violations_backward, args), None


_hinge_violations = super(torch.autograd.Function, _HingeViolations).apply


class ALM(nn.Module):
    r"""The term of the augmented Lagrangian method: hinge violations under multipliers.

    With q from :func:`hinge_violations`, of one list with positives P and negatives N,

    .. math::
        \frac{1}{|P||N|} \sum_{j \in P} \Big( \frac{\mu}{2} q_j^{2p} + \lambda_j q_j \Big)

    to be added to a base loss. There is one multiplier :math:`\lambda_j` per *training sample*, so
    ``forward`` takes each item's index into the training set.

    *Order of the updates.* In training mode ``forward`` computes the term with the multipliers as
    they are, and then adds :math:`\mu q_j` to those of its positives; in eval mode it leaves them
    alone. A second ``forward`` on the same batch (checkpointing, a closure of L-BFGS) updates them
    again. A sample that is in the batch twice is updated by the sum. A violation that is not finite
    is in the term but not in the multipliers: a step that AMP skips leaves no trace.

    *The penalty weight* mu starts at ``mu`` and is raised by :meth:`end_epoch`, to be called after
    each epoch's validation. Multipliers, mu and where its schedule stands are in ``state_dict``.
    Nothing but ``end_epoch`` reads them on the host. Several processes have one copy each.

    Args:
        samples: size of the training set, at least 1.
        delta: the margin; see :func:`hinge_violations`. Published: 0 to 1, by data set and loss.
        mu: the penalty weight's start, positive and finite. Published: 1e-2 to 1e-9. The defaults
            of ``mu`` and ``delta`` are those chosen beside BCE on CIFAR-10 at 1:100.
        rho: its factor, finite and above 1.
        power: p of the first term, at least 1; published: 1.
        reduction: ``"mean"`` over the lists that have positives and negatives (0 if none has),
            ``"sum"``, or ``"none"``, one value per list, 0 for a list without.

    Shape:
        ``forward(scores, positives, indices, where=None)`` takes ``(..., n)`` floating-point
        scores, the lists along the last dimension (a batch of logits is one list), and, broadcast
        to them, bool masks and integer indices. Only indices of positives are used; one outside
        ``[0, samples)`` is an error of the device's indexing. It returns 0-dim, or
        ``scores.shape[:-1]`` for ``reduction="none"``; float32, and float64 for float64 scores.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> term = ALM(samples=100, delta=0.5, mu=0.25)
        >>> scores, positives = torch.tensor([0.0, 0.5, -1.0]), torch.tensor([True, False, False])
        >>> indices = torch.tensor([7, 40, 41])
        >>> term(scores, positives, indices)  # q = 1, |P||N| = 2: 0.25 / 2 / 2
        tensor(0.0625)
        >>> term.multipliers[7]
        tensor(0.2500)
        >>> term(scores, positives, indices)  # and 0.25 / 2 more
        tensor(0.1875)

    Source: Sangalli et al., "Constrained Optimization to Train Neural Networks on Critical and
    Under-Represented Classes" (NeurIPS 2021), and the code published with it.
    """

    multipliers: Tensor
    mu: Tensor
    epoch: Tensor
    previous_auc: Tensor
    rising: Tensor

    def __init__(
        self,
        samples: int,
        *,
        delta: float | Tensor = 0.25,
        mu: float = 1e-7,
        rho: float = 2.0,
        power: int = 1,
        reduction: str = "mean",
    ):
        super().__init__()
        _validate.integer("ALM", "samples", samples, 1)
        _validate.weight("ALM", "delta", delta)
        _number("ALM", "mu", mu, above=True)
        _number("ALM", "rho", rho, above=True)
        if rho <= 1:
            raise ValueError(f"ALM: rho must be above 1, got {rho}")
        _validate.power("ALM", power)
        _validate.choice("ALM", "reduction", reduction, _ops.REDUCTION)
        self.samples = samples
        self.delta = delta
        self.start = float(mu)
        self.rho = float(rho)
        self.power = power
        self.reduction = reduction
        self.register_buffer("multipliers", torch.zeros(samples))
        # A tensor, so that a new value compiles nothing anew.
        self.register_buffer("mu", torch.tensor(self.start, dtype=torch.float64))
        self.register_buffer("epoch", torch.tensor(0))
        self.register_buffer("previous_auc", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("rising", torch.tensor(True))

    @property
    def cap(self) -> float:
        """The largest mu: ``start * rho^3`` for a start of 1e-3 or more, else ``start * rho^5``."""
        return self.start * self.rho ** (3 if self.start >= 1e-3 else 5)

    def forward(
        self,
        scores: Tensor,
        positives: Tensor,
        indices: Tensor,
        where: Tensor | None = None,
    ) -> Tensor:
        """The term; in training mode the multipliers are then updated."""
        _validate.scores("ALM", "scores", scores)
        positives = _validate.mask("ALM", "positives", positives, scores, "scores")
        where = torch.ones_like(positives) if where is None else where
        where = _validate.mask("ALM", "where", where, scores, "scores")
        if scores.device != self.multipliers.device:
            raise ValueError(
                "ALM: scores must be on the device of the multipliers, "
                f"{self.multipliers.device}, got {scores.device} (move the module with .to())"
            )
        indices = self._indices(indices, scores)

        q = hinge_violations(scores, positives, self.delta, where)
        positives, negatives = positives & where, ~positives & where & ~scores.isnan()
        indices = torch.where(positives, indices, 0).flatten().long()
        multipliers = self.multipliers.gather(0, indices).view_as(q).to(q.dtype)
        pairs = positives.sum(-1) * negatives.sum(-1)
        terms = self.mu / 2 * q ** (2 * self.power) + multipliers * q
        value = terms.sum(-1) / pairs.clamp(min=1)

        if self.training:
            with torch.no_grad():
                step = torch.where(positives & q.isfinite(), self.mu * q, 0).flatten()
                step = step.to(self.multipliers.dtype)
                # This form of addition is the same from run to run on every device.
                self.multipliers.index_put_((indices,), step, accumulate=True)
        if self.reduction == "none":
            return value
        total = value.sum()
        return total / (pairs > 0).sum().clamp(min=1) if self.reduction == "mean" else total

    def _indices(self, indices: Tensor, scores: Tensor) -> Tensor:
        _same_place("ALM", "indices", indices, scores, "scores")
        if indices.dtype not in _INDICES:
            raise TypeError(f"ALM: indices must have dtype int32 or int64, got {indices.dtype}")
        try:
            return indices.expand(scores.shape)
        except RuntimeError:
            raise ValueError(
                "ALM: indices must be broadcastable to the shape of scores, "
                f"{tuple(scores.shape)}, got shape {tuple(indices.shape)}"
            ) from None

    @torch.no_grad()
    def end_epoch(self, validation_auc: float | Tensor) -> None:
        """Raise mu, or not, by the published rule; epochs are counted from 0 by these calls.

        * Epoch 0: nothing (our reading: the rule begins with epoch 1). Epoch 1: only the AUC is
          kept. From epoch 2 on, until it is stopped:
        * an AUC of 1 stops mu for good, where it is;
        * a mu that would rise above :attr:`cap` is set to the cap and stops for good;
        * otherwise mu is multiplied by rho in epoch 2, and in a later one only if the AUC fell by
          more than 0.05 from that of the epoch before.

        Args:
            validation_auc: from 0 to 1; a number or a 0-dim tensor, which is read on the host.

        Raises:
            TypeError, ValueError: if it is not.

        Example:
            >>> term = ALM(samples=100, mu=1e-2)
            >>> for auc in (0.6, 0.7, 0.8, 0.8, 0.7, 0.7):
            ...     term.end_epoch(auc)
            >>> term.mu.item()  # raised in epoch 2 and, after a fall, in epoch 4
            0.04
        """
        if isinstance(validation_auc, Tensor) and validation_auc.dim() == 0:
            validation_auc = validation_auc.item()
        _number("ALM.end_epoch", "validation_auc", validation_auc)
        if validation_auc > 1:
            raise ValueError(
                f"ALM.end_epoch: validation_auc must be a number from 0 to 1, got {validation_auc}"
            )
        epoch = self.epoch.item()
        if epoch >= 2 and self.rising.item():
            raised = self.mu.item() * self.rho
            if validation_auc == 1:
                self.rising.fill_(False)
            elif raised > self.cap:
                self.mu.fill_(self.cap)
                self.rising.fill_(False)
            elif epoch == 2 or self.previous_auc.item() - validation_auc > 0.05:
                self.mu.fill_(raised)
        self.previous_auc.fill_(validation_auc)
        self.epoch.add_(1)

    def reset(self) -> None:
        """Multipliers, mu and its schedule as at the start."""
        self.multipliers.zero_()
        self.mu.fill_(self.start)
        self.epoch.zero_()
        self.previous_auc.zero_()
        self.rising.fill_(True)

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return (
            f"samples={self.samples}, delta={self.delta}, mu={self.start}, rho={self.rho}, "
            f"power={self.power}, reduction={self.reduction!r}"
        )


# --- several classes ------------------------------------------------------------------------------


class OneVersusRest(nn.Module):
    """A ranking term applied to the critical classes of several, each against all the rest.

    For a critical class c the scores are ``logits[:, c]`` and the positives the items of class c.
    The classes become a batch of lists in one call of the term, whose reduction over lists is then
    that over classes: ``"mean"`` is the mean over the classes present in the batch, and 0 if none
    is. (:class:`ALM` also needs an item of another class.) The paper's extension to several classes
    is not public to us: this is our reading.

    With :class:`ALM` one multiplier per sample is enough: a sample is a positive of one class only.

    Args:
        term: :class:`rankreg_ext.nn.RankReg` without a memory, :class:`ALM`, or another callable
            ``term(scores, positives, *extra, where=...)`` on lists ``(K, n)``.
        classes: the K critical classes, distinct integers of at least 0.

    Shape:
        ``forward(logits, targets, *extra, where=None)`` takes ``(n, C)`` floating-point logits,
        ``(n,)`` integer classes, what else the term wants (the indices of :class:`ALM`, ``(n,)``),
        and a bool mask ``(n,)`` of the items that count. It returns what the term does: 0-dim, or
        ``(K,)`` in the order of ``classes`` for a term without reduction.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> term = OneVersusRest(RankReg(alpha=1.0, normalize="none"), classes=[1, 2])
        >>> logits = torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.5, 0.0], [0.0, 0.2, 0.3]])
        >>> term(logits, torch.tensor([1, 0, 0]))  # class 1 has rank 3, class 2 is absent
        tensor(9.)

    Source: our reading; that classes present are averaged is the rule of the average-precision loss
    of Rolinek et al. (CVPR 2020).
    """

    classes: Tensor

    def __init__(self, term: Callable[..., Tensor], classes: Sequence[int]):
        super().__init__()
        if not callable(term):
            raise TypeError(f"OneVersusRest: term must be callable, got {type(term).__name__}")
        if isinstance(term, RankReg) and term.memory is not None:
            raise ValueError(
                "OneVersusRest: term must have no memory, which holds the scores of one list, "
                f"got {term}"
            )
        _integers("OneVersusRest", "classes", classes, 0)
        if not len(classes) or len(set(classes)) < len(classes):
            raise ValueError(
                f"OneVersusRest: classes must be distinct, at least one, got {list(classes)}"
            )
        self.term = term
        self.register_buffer("classes", torch.tensor([int(c) for c in classes]), persistent=False)
        self._highest = max(int(c) for c in classes)

    def forward(
        self, logits: Tensor, targets: Tensor, *extra: Tensor, where: Tensor | None = None
    ) -> Tensor:
        """The term of the critical classes' lists."""
        _validate.scores("OneVersusRest", "logits", logits)
        if logits.dim() != 2 or logits.shape[1] <= self._highest:
            raise ValueError(
                "OneVersusRest: logits must have shape (n, classes), with more than "
                f"{self._highest} classes, got {tuple(logits.shape)}"
            )
        if logits.device != self.classes.device:
            raise ValueError(
                "OneVersusRest: logits must be on the device of the module, "
                f"{self.classes.device}, got {logits.device} (move the module with .to())"
            )
        _classes("OneVersusRest", "targets", targets, logits, "logits", len(logits))
        scores = logits.index_select(1, self.classes).T
        return self.term(scores, targets == self.classes.unsqueeze(1), *extra, where=where)

    def extra_repr(self) -> str:
        """The classes."""
        return f"classes={self.classes.tolist()}"


# --- argument checks ------------------------------------------------------------------------------


_INDICES = (torch.int32, torch.int64)


def _number(function: str, argument: str, value: float, *, above: bool = False) -> None:
    """A finite number of at least 0, or above 0."""
    required = f"{function}: {argument} must be a finite number " + (
        "above 0" if above else "of at least 0"
    )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{required}, got {value if value is None else type(value).__name__}")
    if not (0 <= value < math.inf) or (above and value == 0):
        raise ValueError(f"{required}, got {value}")


def _integers(function: str, argument: str, values: Sequence[int], least: int) -> None:
    required = f"{function}: {argument} must be a sequence of integers of at least {least}"
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{required}, got {type(values).__name__}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{required}, got {value!r} in it")
        if value < least:
            raise ValueError(f"{required}, got {value} in it")


def _counts(function: str, counts: Sequence[int], classes: int | None = None) -> tuple[int, ...]:
    _integers(function, "counts", counts, 1)
    if len(counts) != classes if classes else not len(counts):
        needed = "one entry per class, " + (str(classes) if classes else "at least 1")
        raise ValueError(f"{function}: counts must have {needed}, got {len(counts)}")
    return tuple(int(n) for n in counts)


def _same_place(function: str, argument: str, value: Tensor, x: Tensor, of: str) -> None:
    """A tensor on the device of ``x``, which is the argument called ``of``."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {argument} must be a torch.Tensor, got {type(value).__name__}"
        )
    if value.device != x.device:
        raise ValueError(
            f"{function}: {argument} must be on the device of {of}, {x.device}, got {value.device}"
        )


def _classes(
    function: str,
    argument: str,
    value: Tensor,
    x: Tensor,
    of: str,
    n: int,
    *,
    boolean: bool = False,
) -> None:
    """``(n,)`` classes, one for each row of ``x``."""
    _same_place(function, argument, value, x, of)
    kinds = "a bool or integer dtype" if boolean else "an integer dtype"
    integer = not (value.is_floating_point() or value.is_complex())
    if not integer or (value.dtype == torch.bool and not boolean):
        raise TypeError(f"{function}: {argument} must have {kinds}, got {value.dtype}")
    if value.shape != (n,):
        raise ValueError(
            f"{function}: {argument} must have one entry per row of {of}, shape ({n},), "
            f"got {tuple(value.shape)}"
        )
