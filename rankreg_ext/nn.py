"""Modules: the rank regulariser as a term of a training loss, and a memory of past scores."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor, nn

from . import _ops, _validate, functional, reference
from .functional import rankreg_loss

__all__ = ["AdaptiveLam", "RankReg", "ScoreMemory"]

KEEP = ("positives", "negatives", "all")
# Where beta stops if its target cannot be met.
BETA_MIN, BETA_MAX = 2.0**-20, 2.0**20


class RankReg(nn.Module):
    r"""The term ``alpha * R`` to add to a base loss, R being :func:`rankreg_ext.rankreg_loss`.

    Each list needs positives and negatives. One without a positive has value 0 and gradient 0: it
    teaches nothing, and at 1:100 half of all batches of 64 are such. Against that,

    * :class:`rankreg_ext.data.PositiveBatchSampler` puts positives into every batch: the remedy to
      try first, since only a live positive can climb;
    * a :class:`ScoreMemory` lengthens the list by past scores, which carry no gradient.

    The variants are one setting each: ``gradient`` and ``projection`` change the gradient alone, an
    :class:`AdaptiveLam` in the place of ``lam`` makes that independent of scales, a ``memory``
    changes the list. A projection makes the list's standard deviation the unit of ``lam``.

    The values of alpha and lam and the buffer that the paper used are not public to us. The
    defaults here are our own; choose both on validation data, and see
    :func:`rankreg_ext.rankreg_diagnostics` for whether a lam is sensible.

    Args:
        alpha: weight of the term, finite and at least 0; a float or a 0-dim tensor.
        lam: see :func:`rankreg_ext.rankreg_loss`; independent of alpha. Or an :class:`AdaptiveLam`,
            which is given the same settings; without use for ``gradient="identity"``.
        power: see there.
        normalize: see there. With a memory, the length includes the remembered items.
        reduction: see there.
        memory: a :class:`ScoreMemory`, for scores of one dimension (one list); None: none.
        gradient: see :func:`rankreg_ext.rankreg_loss`.
        projection: see there. With a memory, the list includes the remembered scores.

    ``alpha`` and ``lam`` are plain attributes, which a schedule may change between steps, and no
    part of ``state_dict`` (an :class:`AdaptiveLam` is a submodule, with state). Under
    ``torch.compile`` each new float compiles anew; a 0-dim tensor, changed in place, does not.

    Shape:
        ``forward(scores, positives, where=None)`` takes ``(..., n)`` floating-point scores, the
        lists along the last dimension (a batch of logits is one list), and bool masks broadcastable
        to them. It returns 0-dim, or ``scores.shape[:-1]`` for ``reduction="none"``; float32, and
        float64 for float64 scores.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> logits = torch.tensor([0.3, 0.1, 0.7, 0.6], requires_grad=True)
        >>> labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
        >>> term = RankReg(alpha=0.1, lam=1.0)
        >>> base = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        >>> loss = base + term(logits, labels == 1)
        >>> loss.backward()
        >>> term(logits.detach(), labels == 1)  # 0.1 * (3/4)^2
        tensor(0.0563)

    Source: "Ranking Regularization for Critical Rare Classes" (CVPR 2023).
    """

    def __init__(
        self,
        alpha: float | Tensor = 0.1,
        lam: float | Tensor | AdaptiveLam = 5.0,
        power: int = 2,
        normalize: str = "length",
        reduction: str = "mean",
        memory: ScoreMemory | None = None,
        *,
        gradient: str = "blackbox",
        projection: str = "none",
    ):
        super().__init__()
        _validate.weight("RankReg", "alpha", alpha)
        if not isinstance(lam, AdaptiveLam):
            # The scores are not known yet: the widest type, on the device of lam itself.
            probe = lam if isinstance(lam, Tensor) else torch.empty(0, dtype=torch.float64)
            _validate.lam("RankReg", lam, probe)
        _validate.power("RankReg", power)
        _validate.choice("RankReg", "normalize", normalize, _ops.NORMALIZE)
        _validate.choice("RankReg", "reduction", reduction, _ops.REDUCTION)
        _validate.choice("RankReg", "gradient", gradient, reference.GRADIENT)
        _validate.choice("RankReg", "projection", projection, reference.PROJECTION)
        if memory is not None and not isinstance(memory, ScoreMemory):
            raise TypeError(
                f"RankReg: memory must be None or a ScoreMemory, got {type(memory).__name__}"
            )
        self.alpha = alpha
        self.lam = lam
        self.power = power
        self.normalize = normalize
        self.reduction = reduction
        self.memory = memory
        self.gradient = gradient
        self.projection = projection

    def forward(self, scores: Tensor, positives: Tensor, where: Tensor | None = None) -> Tensor:
        """``alpha * R`` of the scores; in training mode a memory then takes them in."""
        if self.memory is None:
            return self.alpha * self._loss(scores, positives, where)
        lists = self.memory.lengthen(scores, positives, where)
        loss = self.alpha * self._loss(*lists)
        if self.training:
            self.memory.append(scores, positives, where)
        return loss

    def _loss(self, scores: Tensor, positives: Tensor, where: Tensor | None) -> Tensor:
        lam = self.lam
        if isinstance(lam, AdaptiveLam):
            lam = 1.0 if self.gradient == "identity" else self._adapted(scores, positives, where)
        return rankreg_loss(
            scores,
            positives,
            lam=lam,
            power=self.power,
            normalize=self.normalize,
            where=where,
            reduction=self.reduction,
            gradient=self.gradient,
            projection=self.projection,
        )

    def _adapted(self, scores: Tensor, positives: Tensor, where: Tensor | None) -> Tensor:
        return self.lam(
            scores,
            positives,
            where,
            power=self.power,
            normalize=self.normalize,
            gradient=self.gradient,
            projection=self.projection,
        )

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        lam = "" if isinstance(self.lam, AdaptiveLam) else f"lam={self.lam}, "
        return (
            f"alpha={self.alpha}, {lam}power={self.power}, "
            f"normalize={self.normalize!r}, reduction={self.reduction!r}, "
            f"gradient={self.gradient!r}, projection={self.projection!r}"
        )


class AdaptiveLam(nn.Module):
    r"""A ``lam`` for :class:`RankReg` that follows the scale of the scores and of the gradient.

    .. math:: \lambda = \beta \, \lVert a - \bar a \rVert_2 / \lVert h \rVert_2

    so that ``beta`` is a pure number: the length of the perturbation ``lam * h`` in that of the
    list of scores. ``beta`` itself goes after a number of non-zero gradient entries per list, of
    which an exponential moving average is kept: below ``target`` a step up, above it a step down.

    The scores are centred, since ranks do not know a common shift and lam must not either. A batch
    of lists has one lam: both norms are over all of its lists that have a positive. Only finite
    unmasked scores count, and where all are equal their standard deviation counts as 1. With a
    projection, the scores are the projected ones.

    The average is over the lists of a call whose gradient some lam could make non-zero. One in
    which every positive leads every negative says nothing about lam (with ``"two_sided"``: one
    without a positive or without a negative); counted, it would drive beta up for as long as there
    is nothing to gain. A call without any such list leaves the state as it is, and so does eval
    mode, the only one in which ``torch.func`` can transform it. ``beta`` and ``ema`` are in
    ``state_dict``; several processes have one pair each. Nothing is read on the host and all shapes
    are fixed; a call costs one pass more over the scores, two in training mode.

    Args:
        beta: where beta starts, positive; it is kept within 2^-20 and 2^20.
        target: the wanted number of non-zero gradient entries per list, positive: a positive that
            comes past k negatives makes 1 + k.
        step: positive; beta is multiplied or divided by ``1 + step``. What matters about lam is its
            order of magnitude, which steps added up (1e-4 in the source) take thousands of calls to
            change, and they can reach 0. This is our choice.
        decay: of the moving average, in [0, 1). The average starts at the target.
        additive: add and subtract ``step`` instead, as the source does.

    Shape:
        ``forward(scores, positives, where=None, *, power, normalize, gradient, projection)`` takes
        what :func:`rankreg_ext.rankreg_loss` takes, and returns the 0-dim lam to give to it:
        float32, float64 for float64 scores, positive. In training mode the state then moves on.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> term = RankReg(alpha=0.1, lam=AdaptiveLam(beta=0.5, target=2.0, step=0.25))
        >>> scores = torch.tensor([3.0, -3.0, 3.0, -3.0])  # norm 6; h = 2 * 3/4
        >>> positives = torch.tensor([False, True, False, False])
        >>> value = term(scores, positives)  # lam = 2: -3 is moved to 0, past one negative
        >>> term.lam.eval()(scores, positives)  # one entry, two were wanted: beta is 0.5 * 1.25
        tensor(2.5000)

    Source: Minervini et al., "Adaptive Perturbation-Based Gradient Estimation for Discrete Latent
    Variable Models" (AAAI 2023), whose defaults for beta, target and decay these are.
    """

    beta: Tensor
    ema: Tensor

    def __init__(
        self,
        beta: float = 1.0,
        target: float = 1.0,
        step: float = 0.01,
        decay: float = 0.9,
        *,
        additive: bool = False,
    ):
        super().__init__()
        _number("beta", beta, lambda x: BETA_MIN <= x <= BETA_MAX, "within 2^-20 and 2^20")
        _number("target", target, lambda x: 0 < x < math.inf, "positive and finite")
        _number("step", step, lambda x: 0 < x < math.inf, "positive and finite")
        _number("decay", decay, lambda x: 0 <= x < 1, "at least 0 and below 1")
        if not isinstance(additive, bool):
            raise TypeError(f"AdaptiveLam: additive must be a bool, got {additive!r}")
        self.target = float(target)
        self.step = float(step)
        self.decay = float(decay)
        self.additive = additive
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.register_buffer("ema", torch.tensor(float(target)))

    @torch.no_grad()
    def forward(
        self,
        scores: Tensor,
        positives: Tensor,
        where: Tensor | None = None,
        *,
        power: int = 2,
        normalize: str = "length",
        gradient: str = "blackbox",
        projection: str = "none",
    ) -> Tensor:
        """The lam of these lists; in training mode beta then takes its step."""
        positives, where = self._check(scores, positives, where)
        _validate.power("AdaptiveLam", power)
        _validate.choice("AdaptiveLam", "normalize", normalize, _ops.NORMALIZE)
        _validate.choice("AdaptiveLam", "gradient", gradient, reference.GRADIENT)
        _validate.choice("AdaptiveLam", "projection", projection, reference.PROJECTION)
        scores, positives = scores.detach(), positives & where
        kernels = functional._kernels("AdaptiveLam", scores)
        ranks, change = functional._ranks_and_change(kernels, scores, positives, where)

        h = reference.rankreg_inner_gradient(ranks, positives, where, power, normalize)
        h = torch.where(h.isfinite(), h, 0).square().sum(-1)
        some = h > 0
        _, unit = reference.standardized(scores, where)
        if projection != "none":
            unit = torch.ones_like(unit)
        length = (where & scores.isfinite()).sum(-1).clamp(min=1) * unit.squeeze(-1).square()
        ratio = torch.where(some, length, 0).sum() / h.sum()
        ratio = torch.where(some.any(), ratio.sqrt(), 1)
        dtype = reference.compute_dtype(scores.dtype)
        limits = torch.finfo(dtype)
        lam = (self.beta.double() * ratio).clamp(limits.tiny, limits.max).to(dtype)

        if self.training and gradient != "identity":
            # Of the projected scores: standardizing spreads the gradient over every item.
            slope = reference.rankreg_gradient(
                scores,
                positives,
                where,
                lam,
                power,
                normalize,
                gradient,
                "none" if projection == "none" else "spread",
                ranks,
                change,
            )
            told = some & _movable(scores, positives, where, two_sided=gradient == "two_sided")
            self._adapt((slope.abs() > 0).sum(-1), told)
        return lam

    def _adapt(self, entries: Tensor, told: Tensor) -> None:
        """One step, by the non-zero entries of the lists that ``told`` marks."""
        mean = torch.where(told, entries, 0).sum() / told.sum().clamp(min=1)
        ema = self.decay * self.ema + (1 - self.decay) * mean
        up = torch.sign(self.target - ema)
        beta = self.beta + self.step * up if self.additive else self.beta * (1 + self.step) ** up
        some = told.any()
        self.ema.copy_(torch.where(some, ema, self.ema))
        self.beta.copy_(torch.where(some, beta.clamp(BETA_MIN, BETA_MAX), self.beta))

    def _check(self, scores, positives, where) -> tuple[Tensor, Tensor]:
        _validate.scores("AdaptiveLam", "scores", scores)
        if scores.device != self.beta.device:
            raise ValueError(
                f"AdaptiveLam: scores must be on the device of the module, {self.beta.device}, "
                f"got {scores.device} (move the module with .to())"
            )
        positives = _validate.mask("AdaptiveLam", "positives", positives, scores, "scores")
        if where is None:
            return positives, torch.ones_like(positives)
        return positives, _validate.mask("AdaptiveLam", "where", where, scores, "scores")

    def extra_repr(self) -> str:
        """The settings; beta and ema are state."""
        return (
            f"target={self.target}, step={self.step}, decay={self.decay}, additive={self.additive}"
        )


def _movable(scores: Tensor, positives: Tensor, where: Tensor, *, two_sided: bool) -> Tensor:
    """The lists whose gradient some lam makes non-zero, one bool per list."""
    known = where & ~scores.isnan()
    positives, negatives = known & positives, known & ~positives
    if two_sided or not scores.shape[-1]:
        return positives.any(-1) & negatives.any(-1)
    lowest = torch.where(positives, scores, torch.inf).amin(-1, keepdim=True)
    return (negatives & (scores >= lowest)).any(-1) & positives.any(-1)


def _number(argument: str, value: float, holds, required: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"AdaptiveLam: {argument} must be a number {required}, got {type(value).__name__}"
        )
    if not holds(value):
        raise ValueError(f"AdaptiveLam: {argument} must be {required}, got {value}")


class ScoreMemory(nn.Module):
    """First-in, first-out store of past scores, which lengthens the list of :class:`RankReg`.

    The scores are detached: nothing remembered moves. What each kind does to the batch,

    * remembered *positives* are ranked among the batch, and where the perturbation carries one past
      a negative of the batch, that negative steps down, even in a batch without a positive. They
      raise no positive, and they count in ``|P|``: the ``h`` of every positive, and so how far
      ``lam`` reaches, shrinks as ``1 / |P|``. Enlarge ``lam`` with the capacity;
    * remembered *negatives* make the list denser, so that a live positive finds a better place
      nearer by. A batch without a positive still has value and gradient 0.

    Scores of a model that has since changed distort the order: that is what ``max_age`` is for.
    The memory is kept in ``state_dict``; a run resumed without it starts with an empty one. In
    training mode a batch is stored after its loss is computed, so that it never meets itself. In
    eval mode the memory is used as it stands, and nothing is stored and nothing ages: call
    ``eval()`` on the loss module too before it sees validation data. Several processes have one
    memory each.

    Everything has a fixed shape and nothing is read on the host. Masked items and NaN scores are
    never stored. The memory is float32; ``.double()`` keeps float64 scores unrounded.

    Args:
        capacity: entries kept, at least 1; the newest win, and of one batch the last items.
        keep: ``"positives"``, ``"negatives"`` or ``"all"``.
        max_age: entries stored more than this many training steps ago (forward calls of RankReg in
            training mode) are ignored; at least 1; None: no limit.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> term = RankReg(alpha=1.0, normalize="none", memory=ScoreMemory(100, keep="negatives"))
        >>> batch = torch.tensor([0.5, 0.9, 0.7])
        >>> term(batch, torch.tensor([True, False, False]))  # rank 3, squared
        tensor(9.)
        >>> term(batch, torch.tensor([True, False, False]))  # rank 5 among three and the past two
        tensor(25.)
        >>> term.memory.reset()
    """

    scores: Tensor
    positives: Tensor
    times: Tensor
    step: Tensor

    def __init__(self, capacity: int, *, keep: str = "positives", max_age: int | None = None):
        super().__init__()
        _validate.integer("ScoreMemory", "capacity", capacity, 1)
        _validate.choice("ScoreMemory", "keep", keep, KEEP)
        if max_age is not None:
            _validate.integer("ScoreMemory", "max_age", max_age, 1)
        self.capacity = capacity
        self.keep = keep
        self.max_age = max_age
        # Oldest first, empty entries in front. An entry's time is its training step, -1 if empty.
        self.register_buffer("scores", torch.zeros(capacity))
        self.register_buffer("positives", torch.zeros(capacity, dtype=torch.bool))
        self.register_buffer("times", torch.full((capacity,), -1))
        self.register_buffer("step", torch.tensor(0))

    def reset(self) -> None:
        """Forget everything."""
        self.scores.zero_()
        self.positives.fill_(False)
        self.times.fill_(-1)
        self.step.zero_()

    def valid(self) -> Tensor:
        """``(capacity,)`` bool: the entries in use, neither empty nor too old."""
        valid = self.times >= 0
        if self.max_age is not None:
            valid = valid & (self.step - self.times <= self.max_age)
        return valid

    def lengthen(
        self, scores: Tensor, positives: Tensor, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, positives and where of the batch ``(n,)``, each followed by ``capacity`` entries.

        Raises:
            TypeError, ValueError: if the scores are not one list on the memory's device.
        """
        positives, where = self._check(scores, positives, where)
        return (
            torch.cat([scores, self.scores]),
            torch.cat([positives, self.positives]),
            torch.cat([where, self.valid()]),
        )

    @torch.no_grad()
    def append(self, scores: Tensor, positives: Tensor, where: Tensor | None = None) -> None:
        """Store the batch ``(n,)`` and go on to the next training step.

        Raises:
            TypeError, ValueError: if the scores are not one list on the memory's device.
        """
        positives, where = self._check(scores, positives, where)
        stored = where & ~scores.isnan()
        if self.keep != "all":
            stored = stored & (positives if self.keep == "positives" else ~positives)

        scores = torch.cat([self.scores, scores.detach().to(self.scores.dtype)])
        positives = torch.cat([self.positives, positives])
        times = torch.cat([self.times, torch.where(stored, self.step, -1)])

        # Entry k from the end of those kept goes to slot capacity - k; all others share one slot
        # more, which is cut off. No boolean indexing: its shape would depend on the data.
        kept = times >= 0
        from_end = kept.flip(0).cumsum(0).flip(0)
        newest = kept & (from_end <= self.capacity)
        slot = torch.where(newest, self.capacity - from_end, self.capacity)
        for buffer, values, empty in (
            (self.scores, scores, 0),
            (self.positives, positives, False),
            (self.times, times, -1),
        ):
            slots = buffer.new_full((self.capacity + 1,), empty)
            buffer.copy_(slots.scatter(0, slot, values)[: self.capacity])
        self.step.add_(1)

    def _check(self, scores, positives, where) -> tuple[Tensor, Tensor]:
        _validate.scores("ScoreMemory", "scores", scores)
        if scores.dim() != 1:
            raise ValueError(
                "ScoreMemory: scores must have 1 dimension, one list, "
                f"got shape {tuple(scores.shape)}"
            )
        if scores.device != self.scores.device:
            raise ValueError(
                f"ScoreMemory: scores must be on the device of the memory, {self.scores.device}, "
                f"got {scores.device} (move the module with .to())"
            )
        positives = _validate.mask("ScoreMemory", "positives", positives, scores, "scores")
        if where is None:
            return positives, torch.ones_like(positives)
        return positives, _validate.mask("ScoreMemory", "where", where, scores, "scores")

    def extra_repr(self) -> str:
        """The settings."""
        return f"capacity={self.capacity}, keep={self.keep!r}, max_age={self.max_age}"
