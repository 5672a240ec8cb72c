"""``rankdata`` of ``scipy.stats``, for NumPy arrays and what ``numpy.asarray`` makes one of.

``from rankreg_ext.compat.scipy_stats import rankdata`` in place of ``from scipy.stats import
rankdata`` gives equal ranks of equal dtype. scipy itself is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _backend, functional
from ..arrays import _FLOATS, _INTEGERS, _kernels, _plain, _tensor, np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["rankdata"]

_METHODS = ("average", "min", "max", "dense", "ordinal")
_POLICIES = ("propagate", "omit", "raise")

_native = _backend.load_native()
_kernel = None if _native is None else _native.rankdata


def rankdata(
    a: ArrayLike,
    method: str = "average",
    *,
    axis: int | None = None,
    nan_policy: str = "propagate",
) -> NDArray[Any]:
    """Ranks of the data, 1 for the lowest, dealing with ties as ``method`` says.

    Args:
        a: the data. Any real type of up to 8 bytes is ranked as it lies in memory; longdouble,
            complex, strings, dates and objects are put in order by NumPy first, at its speed.
        method: what equal values share: ``"average"`` the mean of their ranks, ``"min"`` the
            lowest, ``"max"`` the highest, ``"dense"`` the lowest, without gaps behind them;
            ``"ordinal"`` nothing, the earlier one ranks lower.
        axis: the axis of the lists; None: the whole array is one list.
        nan_policy: ``"propagate"``: a list with a NaN has nothing but NaN ranks; ``"omit"``: a NaN
            has rank NaN and counts for nobody; ``"raise"``: it is an error.

    Returns:
        The ranks, of the shape of ``a``, flat for ``axis=None``: float64 for ``"average"`` and
        where there are NaN ranks, otherwise int64.

    Raises:
        ValueError: for an unknown method or policy, and for a NaN under ``"raise"``.
        numpy.exceptions.AxisError: if there is no such axis.

    Example:
        >>> rankdata([0, 2, 3, 2])
        array([1. , 2.5, 4. , 2.5])
        >>> rankdata([[0, 2, 2], [3, 2, 5]], "min", axis=1)
        array([[1, 2, 2],
               [2, 1, 3]])
        >>> rankdata([0, 2, 3, float("nan"), -2], nan_policy="omit")
        array([ 2.,  3.,  4., nan,  1.])
    """
    if _kernel is not None and not _backend._open:
        ranks = _kernel(a, method, axis, nan_policy)
        if ranks is not None:
            return ranks
    return _general(a, method, axis, nan_policy)


def _general(a: ArrayLike, method: str, axis: int | None, nan_policy: str) -> NDArray[Any]:
    """Whatever the kernel does not take as it is; errors, too."""
    if method not in _METHODS:
        raise ValueError(f'unknown method "{method}"')
    x = np.asarray(a)
    if axis is None:
        x, axis = x.ravel(), -1
    if x.size == 0:
        return np.empty(x.shape, np.float64 if method == "average" else np.int64)
    if nan_policy not in _POLICIES:
        policies = ", ".join(map(repr, _POLICIES))
        raise ValueError(f"nan_policy must be one of {policies}, got {nan_policy!r}")
    try:
        range(x.ndim)[axis]
    except IndexError:
        raise np.exceptions.AxisError(axis, x.ndim) from None
    x = np.swapaxes(x, axis, -1)

    objects = x.dtype.kind == "O"
    kernel = None if _kernels() is None else _kernel
    if x.dtype.char in _FLOATS + _INTEGERS:
        x = _plain(x)
        if kernel is not None:
            return np.swapaxes(kernel(x, method, -1, nan_policy), axis, -1)
        nan = np.isnan(x)
    else:
        nan, x = _nan(x), _places(x)
    if nan_policy == "raise" and nan.any():
        raise ValueError("The input contains nan values")
    if objects and nan.any():
        raise TypeError("rankdata: NaN among Python objects is ranked under no policy")
    if kernel is not None:
        ranks = kernel(x, method, -1, "omit")
    else:
        ranks = functional.rank(_tensor(x), descending=False, ties=method).numpy()
        ranks = ranks.astype(np.float64 if method == "average" or nan.any() else np.int64)
    if nan.any():
        ranks = ranks.astype(np.float64)
        ranks[nan if nan_policy == "omit" else nan.any(-1)] = np.nan
    return np.swapaxes(ranks, axis, -1)


def _nan(x: NDArray[Any]) -> NDArray[Any]:
    """Where ``x``, of a type that no kernel takes, is NaN."""
    if x.dtype.kind in "fc":
        return np.isnan(x)
    nan = np.zeros(x.shape, bool)
    if x.dtype.kind == "O":
        numbers = (float, complex, np.number)
        nan.flat = [isinstance(item, numbers) and bool(np.isnan(item)) for item in x.flat]
    return nan


def _places(x: NDArray[Any]) -> NDArray[np.int64]:
    """Integers in the order of each list ``x[..., :]``, equal where its values are."""
    order = np.argsort(x, axis=-1, kind="stable")
    ordered = np.take_along_axis(x, order, -1)
    places = np.zeros(x.shape, np.int64)
    np.cumsum(ordered[..., 1:] != ordered[..., :-1], axis=-1, out=places[..., 1:])
    out = np.empty_like(places)
    np.put_along_axis(out, order, places, -1)
    return out
