"""The functions of this package for NumPy arrays: same kernels, same semantics, no autograd.

Arrays are ranked as they lie in memory, strided views too; only swapped bytes, misaligned data and
lists that no single stride leads through are copied first. Without the native library, or with
another back-end asked for, the calls go through the functions for tensors.

>>> import numpy as np
>>> from rankreg_ext import arrays
>>> arrays.rank(np.array([0.3, 0.1, 0.7]))
array([2., 3., 1.])
"""

from __future__ import annotations

import math
import numbers
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from . import _backend, _ops, _validate, functional

try:
    import numpy as np
except ImportError as error:
    raise ImportError("rankreg_ext.arrays needs numpy: pip install numpy") from error

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["positive_ranks", "rank", "rankreg_loss"]

_FLOATS = "efd"
_INTEGERS = "?bBhHiIlLqQ"


def rank(
    x: ArrayLike,
    axis: int = -1,
    *,
    descending: bool = True,
    ties: str = "min",
    where: ArrayLike | None = None,
) -> NDArray[Any]:
    """Ranks of the items of each list; see :func:`rankreg_ext.rank`.

    Args:
        x: ``(..., n, ...)``, lists along ``axis``; float16, float32, float64, bool or integers.
        axis: the axis of the lists.
        descending, ties, where: as for :func:`rankreg_ext.rank`, ``where`` an array of bool.

    Returns:
        The ranks, of the shape of ``x``: float32, and float64 for float64 input and for lists too
        long to have exact ranks in float32.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> import numpy as np
        >>> rank(np.array([[5, 5, 1], [1, 2, 3]]), ties="average")
        array([[1.5, 1.5, 3. ],
               [3. , 2. , 1. ]], dtype=float32)
    """
    tie_rule = _validate.ties("rank", ties)
    kernels = _kernels()
    if kernels is not None and axis == -1:
        ranks = kernels.rank(x, bool(descending), tie_rule, where)
        if ranks is not None:
            return ranks
    x = _array("rank", "x", x, _FLOATS + _INTEGERS)
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"rank: axis must be an int, got {type(axis).__name__}")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"rank: axis must lie in [{-x.ndim}, {x.ndim - 1}] for an array of {x.ndim} "
            f"dimensions, got {axis}"
        )
    where = None if where is None else _mask("rank", "where", where, x, "x").swapaxes(axis, -1)
    x, where = _plain(x.swapaxes(axis, -1)), _plain(where)
    if kernels is not None:
        ranks = kernels.rank(x, bool(descending), tie_rule, where)
    else:
        x, where = _tensor(x), _tensor(where)
        ranks = functional.rank(x, descending=descending, ties=ties, where=where).numpy()
    return ranks.swapaxes(axis, -1)


def positive_ranks(
    scores: ArrayLike, positives: ArrayLike, *, where: ArrayLike | None = None
) -> NDArray[Any]:
    """Ranks of the positives among all items of their list, without sorting the list.

    Args:
        scores: ``(..., n)``, lists along the last axis; float16, float32 or float64.
        positives: bool, broadcastable to ``scores``.
        where: bool, broadcastable to ``scores``; masked items count for nobody.

    Returns:
        ``(..., n)``: the ranks at the positives, 0 elsewhere; dtype as :func:`rank`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> import numpy as np
        >>> scores = np.array([0.3, 0.1, 0.7, 0.6, 0.8])
        >>> positive_ranks(scores, np.array([True, False, False, True, False]))
        array([4., 0., 0., 3., 0.])
    """
    kernels = _kernels()
    if kernels is not None:
        ranks = kernels.positive_ranks(scores, positives, where)
        if ranks is not None:
            return ranks
    scores, positives, where = _lists("positive_ranks", scores, positives, where)
    if kernels is not None:
        return kernels.positive_ranks(scores, positives, where)
    return functional.positive_ranks(
        _tensor(scores), _tensor(positives), where=_tensor(where)
    ).numpy()


def rankreg_loss(
    scores: ArrayLike,
    positives: ArrayLike,
    *,
    lam: float = 5.0,
    power: int = 2,
    normalize: str = "length",
    where: ArrayLike | None = None,
    reduction: str = "mean",
    gradient: bool = False,
) -> Any:
    """The rank regulariser, and with ``gradient=True`` its gradient as well.

    Args:
        scores: ``(..., n)``, lists along the last axis; float16, float32 or float64.
        positives: bool, broadcastable to ``scores``.
        lam: as for :func:`rankreg_ext.rankreg_loss`, a float.
        power, normalize, where, reduction: as for :func:`rankreg_ext.rankreg_loss`.
        gradient: whether to return the gradient, too.

    Returns:
        The loss, a scalar or ``scores.shape[:-1]`` for ``reduction="none"``: float32, float64 for
        float64 scores. With ``gradient=True`` the pair of it and its gradient, of the shape and
        dtype of ``scores``; for ``"none"`` each list's own.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> import numpy as np
        >>> scores = np.array([0.3, 0.1, 0.7, 0.6])
        >>> positives = np.array([True, False, False, False])
        >>> loss, gradient = rankreg_loss(scores, positives, lam=1.0, gradient=True)
        >>> float(loss)
        0.5625
        >>> gradient
        array([-0.5 ,  0.  ,  0.25,  0.25])
    """
    _validate.power("rankreg_loss", power)
    norm = _validate.choice("rankreg_loss", "normalize", normalize, _ops.NORMALIZE)
    reduce = _validate.choice("rankreg_loss", "reduction", reduction, _ops.REDUCTION)
    kernels = _kernels()
    if type(lam) is not float or not _validate.LAM_MIN <= lam <= _validate.LAM_MAX:
        scores = np.asarray(scores)
        lam = _lam(lam, scores)
    if kernels is not None:
        args = (lam, power, bool(norm))
        out = kernels.rankreg_loss(scores, positives, *args, where, reduce, bool(gradient))
        if out is None:
            scores, positives, where = _lists("rankreg_loss", scores, positives, where)
            out = kernels.rankreg_loss(scores, positives, *args, where, reduce, bool(gradient))
        loss = out[0] if out[0].ndim else out[0][()]
        return (loss, out[1]) if gradient else loss
    scores, positives, where = _lists("rankreg_loss", scores, positives, where)
    scores = _tensor(scores).requires_grad_(gradient)
    loss = functional.rankreg_loss(
        scores,
        _tensor(positives),
        lam=lam,
        power=power,
        normalize=normalize,
        where=_tensor(where),
        reduction=reduction,
    )
    value = loss.detach().numpy()[()]
    return (value, torch.autograd.grad(loss.sum(), scores)[0].numpy()) if gradient else value


def _kernels() -> ModuleType | None:
    """The native library, if it is there and no other back-end was asked for."""
    return _backend.load_native() if _backend.requested() in ("auto", "cpu") else None


def _array(function: str, argument: str, value: ArrayLike, types: str) -> NDArray[Any]:
    x = np.asarray(value)
    if x.dtype.char not in types:
        kinds = "float16, float32 or float64" + (", or an integer type" * (types != _FLOATS))
        raise TypeError(f"{function}: {argument} must have dtype {kinds}, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError(
            f"{function}: {argument} must have at least 1 dimension, got a 0-dim array"
        )
    return x


def _mask(function: str, argument: str, value: ArrayLike, x: NDArray, of: str) -> NDArray[Any]:
    mask = np.asarray(value)
    if mask.dtype != np.bool_:
        hint = " (for 0/1 labels pass `labels == 1`)" if argument == "positives" else ""
        raise TypeError(f"{function}: {argument} must have dtype bool, got {mask.dtype}{hint}")
    try:
        return np.broadcast_to(mask, x.shape)
    except ValueError:
        raise ValueError(
            f"{function}: {argument} must be broadcastable to the shape of {of}, {x.shape}, "
            f"got shape {mask.shape}"
        ) from None


def _lists(function: str, scores: ArrayLike, positives: ArrayLike, where: ArrayLike | None):
    """The arguments as plain arrays of one shape."""
    scores = _array(function, "scores", scores, _FLOATS)
    positives = _mask(function, "positives", positives, scores, "scores")
    if where is not None:
        where = _mask(function, "where", where, scores, "scores")
    return _plain(scores), _plain(positives), _plain(where)


def _lam(lam: float, scores: NDArray) -> float:
    """``lam``, if it is a number that survives its rounding to the compute type."""
    if isinstance(lam, bool) or not isinstance(lam, numbers.Real):
        raise TypeError(f"rankreg_loss: lam must be a float, got {type(lam).__name__}")
    lam = float(lam)
    if not 0 < lam < math.inf:
        raise ValueError(f"rankreg_loss: lam must be positive and finite, got {lam}")
    if scores.dtype != np.float64 and not _validate.LAM_MIN <= lam <= _validate.LAM_MAX:
        raise ValueError(
            f"rankreg_loss: lam must be representable in float32, the compute type of "
            f"{scores.dtype} scores, got {lam}"
        )
    return lam


def _plain(x: NDArray | None) -> NDArray | None:
    """``x`` as every kernel takes it: native bytes, aligned, contiguous."""
    return None if x is None else np.require(x, x.dtype.newbyteorder("="), ["C", "A", "E"])


def _tensor(x: NDArray | None) -> torch.Tensor | None:
    """A tensor of a copy. Torch knows one integer type of each size: ``dtype.str`` names that."""
    return None if x is None else torch.from_numpy(np.array(x, order="C").view(x.dtype.str))
