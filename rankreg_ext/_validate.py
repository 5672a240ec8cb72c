"""Argument checks. Every message names the function, the argument, the requirement, the value."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from .reference import TIES

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
INTEGERS = frozenset(
    (
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
)
_SORTABLE = FLOATS | INTEGERS
# The ends of float32, subnormals included: lam must survive its rounding to the compute type.
LAM_MIN, LAM_MAX = 2.0**-149, torch.finfo(torch.float32).max


def scores(function: str, argument: str, x: Tensor, *, integers: bool = False) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {argument} must be a torch.Tensor, got {_type(x)}")
    if x.layout is not torch.strided:
        raise TypeError(f"{function}: {argument} must be a dense (strided) tensor, got {x.layout}")
    if x.dtype not in (_SORTABLE if integers else FLOATS):
        kinds = "float16, bfloat16, float32 or float64" + (", or an integer type" * integers)
        raise TypeError(f"{function}: {argument} must have dtype {kinds}, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(
            f"{function}: {argument} must have at least 1 dimension, got a 0-dim tensor"
        )


def dimension(function: str, dim: int, x: Tensor) -> int:
    """``dim`` counted from the front."""
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"{function}: dim must be an int, got {_type(dim)}")
    n = x.dim()
    if not -n <= dim < n:
        raise ValueError(
            f"{function}: dim must lie in [{-n}, {n - 1}] for a tensor of {n} dimensions, got {dim}"
        )
    return dim % n


def mask(function: str, argument: str, value: Tensor, x: Tensor, of: str) -> Tensor:
    """``value`` expanded to the shape of ``x``, which is the argument called ``of``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {argument} must be a bool torch.Tensor, got {_type(value)}")
    if value.dtype is not torch.bool:
        hint = " (for 0/1 labels pass `labels == 1`)" if argument == "positives" else ""
        raise TypeError(
            f"{function}: {argument} must have dtype torch.bool, got {value.dtype}{hint}"
        )
    if value.device != x.device:
        raise ValueError(
            f"{function}: {argument} must be on the device of {of}, {x.device}, got {value.device}"
        )
    if value.shape == x.shape:
        return value
    try:
        return value.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: {argument} must be broadcastable to the shape of {of}, "
            f"{tuple(x.shape)}, got shape {tuple(value.shape)}"
        ) from None


def ties(function: str, value: str) -> int:
    """The index of the tie rule."""
    try:
        return TIES.index(value)
    except ValueError:
        raise ValueError(
            f"{function}: ties must be one of {', '.join(map(repr, TIES))}, got {value!r}"
        ) from None


def choice(function: str, argument: str, value: str, allowed: tuple[str, ...]) -> int:
    if value not in allowed:
        raise ValueError(
            f"{function}: {argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        )
    return allowed.index(value)


def lam(function: str, value: float | Tensor, x: Tensor) -> tuple[float, Tensor | None]:
    """``(lam, lam_tensor)`` as the ops take them. A tensor's value is never read here."""
    if type(value) is float and LAM_MIN <= value <= LAM_MAX:
        return value, None
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.dtype not in FLOATS:
            raise ValueError(
                f"{function}: lam must be a float or a 0-dim floating-point tensor, "
                f"got shape {tuple(value.shape)}, dtype {value.dtype}"
            )
        if value.device != x.device:
            raise ValueError(
                f"{function}: lam must be on the device of the scores, {x.device}, "
                f"got {value.device}"
            )
        return 1.0, value.detach() if value.requires_grad else value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: lam must be a float or a 0-dim tensor, got {_type(value)}")
    value = float(value)
    if not 0 < value < math.inf:
        raise ValueError(f"{function}: lam must be positive and finite, got {value}")
    if x.dtype != torch.float64 and not LAM_MIN <= value <= LAM_MAX:
        raise ValueError(
            f"{function}: lam must be representable in float32, the compute type of "
            f"{x.dtype} scores, got {value}"
        )
    return value, None


def power(function: str, value: int) -> None:
    if type(value) is int and value >= 1:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: power must be an integer of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{function}: power must be an integer of at least 1, got {value}")


def _type(value: object) -> str:
    return type(value).__name__


def integer(function: str, argument: str, value: int, least: int) -> None:
    required = f"{function}: {argument} must be an integer of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{required}, got {value!r}")
    if value < least:
        raise ValueError(f"{required}, got {value}")


def weight(function: str, argument: str, value: float | Tensor) -> None:
    """A finite number that is not negative, or a 0-dim tensor, whose value is not read."""
    required = f"{function}: {argument} must be a finite number of at least 0 or a 0-dim tensor"
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.dtype not in FLOATS:
            raise ValueError(f"{required}, got shape {tuple(value.shape)}, dtype {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{required}, got {_type(value)}")
    elif not 0 <= value < math.inf:
        raise ValueError(f"{required}, got {value}")
