"""The sample inputs that value tests, gradient tests, opcheck and every back-end share."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from rankreg_ext import _backend
from rankreg_ext.reference import TIES, rank_dtype

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (
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
VALUES = ("normal", "tied", "constant", "sorted", "reversed", "clustered", "special", "subnormal")
LAYOUTS = ("contiguous", "permuted", "expanded", "strided", "misaligned")
MASKS = (None, "random", "row", "nothing", "everything")
SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0)

# Lengths around every threshold at which a kernel changes its way (see csrc/cpu/tuning.h and
# network.h): comparing all up to 24 or 32, vectors of 4, 8 and 16 words, blocks of 32, 128 and 256,
# one network up to 1024 or 4096, tiles of 2048; and where loops by eight have a remainder.
EDGES = (0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
LONG_EDGES = (511, 512, 513, 1024, 1025, 2047, 2048, 2049, 4096, 4097)
# Shares of positives: none, few that meet every score, and more than that.
POSITIVES = (0.0, 0.02, 0.3, 1.0)


# The back-ends that are compared, and the device of each one's tensors.
_no_cuda = _backend.usable("cuda")
CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(_no_cuda is not None, reason=f"needs the CUDA back-end: {_no_cuda}"),
)
_no_triton = _backend.usable("triton")
_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        _no_triton is not None or _interpreted,
        reason=f"needs Triton on a GPU: {_no_triton or 'it is the interpreter'}",
    ),
)
BACKENDS = ("cpu", pytest.param("cuda", marks=CUDA))


@dataclass(frozen=True)
class Case:
    """Everything that makes an input; tensors follow from it by `seed`."""

    seed: int
    batch: tuple[int, ...]
    n: int
    dtype: torch.dtype
    values: str
    layout: str
    mask: str | None
    share: float
    ties: str
    descending: bool
    lam: float
    power: int
    normalize: str
    reduction: str
    gradient: str

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def scores(self) -> Tensor:
        g = self.generator()
        shape = (*self.batch, self.n)
        if self.layout == "expanded" and self.batch:
            shape = (*self.batch[:-1], 1, self.n)
        x = values_of(self.values, shape, self.dtype, g)
        if self.layout == "expanded" and self.batch:
            return x.expand(*self.batch, self.n)
        return laid_out(x, self.layout)

    def positives(self) -> Tensor:
        g = self.generator().manual_seed(self.seed + 1)
        return torch.rand(*self.batch, self.n, generator=g) < self.share

    def where(self) -> Tensor | None:
        g = self.generator().manual_seed(self.seed + 2)
        shape = (*self.batch, self.n)
        return {
            None: lambda: None,
            "random": lambda: torch.rand(shape, generator=g) < 0.8,
            "row": lambda: (torch.rand(self.n, generator=g) < 0.8).expand(shape),
            "nothing": lambda: torch.zeros(shape, dtype=torch.bool),
            "everything": lambda: torch.ones(shape, dtype=torch.bool),
        }[self.mask]()

    def upstream(self) -> Tensor:
        """The gradient that arrives at the ranks."""
        g = self.generator().manual_seed(self.seed + 3)
        shape = (*self.batch, self.n)
        out = torch.randn(shape, generator=g).to(rank_dtype(self.dtype, self.n, self.ties))
        if self.gradient == "sparse":
            out = out * (torch.rand(shape, generator=g) < 0.2)
        elif self.gradient == "zero lists" and self.batch:
            out = out * (torch.rand((*self.batch, 1), generator=g) < 0.5)
        elif self.gradient == "special":
            out = sprinkle(out, g)
        elif self.gradient == "one value":
            out = out.flatten()[:1].expand(shape) if out.numel() else out
        return out


def values_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    if not dtype.is_floating_point:
        if dtype == torch.bool:
            return torch.rand(shape, generator=g) < 0.5
        info = torch.iinfo(dtype)
        if kind in ("tied", "constant"):
            low, high = 0, 4
        else:  # the whole range, as far as 64 bits can be drawn
            low, high = max(info.min, -(2**62)), min(info.max, 2**62)
        x = torch.randint(low, high, shape, generator=g)
        if kind == "special" and x.numel():
            ends = torch.tensor([max(info.min, -(2**63)), min(info.max, 2**63 - 1)])
            x = torch.where(torch.rand(shape, generator=g) < 0.3, ends[x.abs() % 2], x)
        return x.to(dtype)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    if kind == "tied":
        x = (x * 2).round() / 2
    elif kind == "constant":
        x = torch.full_like(x, 0.25)
    elif kind == "sorted":
        x = x.sort(-1).values
    elif kind == "reversed":
        x = x.sort(-1, descending=True).values
    elif kind == "clustered":
        x = torch.where(x > 0, 1 + x * 1e-5, x * 1e3)
    elif kind == "special":
        x = sprinkle((x * 4).round() / 4, g)
    elif kind == "subnormal":
        x = x * torch.finfo(dtype).smallest_normal / 8
    return x.to(dtype)


def sprinkle(x: Tensor, g: torch.Generator) -> Tensor:
    """About a third of the elements replaced by NaN, infinities and zeros of both signs."""
    specials = torch.tensor(SPECIAL, dtype=x.dtype)
    pick = specials[torch.randint(len(SPECIAL), x.shape, generator=g)]
    return torch.where(torch.rand(x.shape, generator=g) < 0.3, pick, x)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "permuted":
        order = list(range(x.dim()))[::-1]
        return x.permute(order).contiguous().permute(order)
    if layout == "strided":
        wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "misaligned":
        wide = x.new_zeros((*x.shape[:-1], x.shape[-1] + 1))
        wide[..., 1:] = x
        return wide[..., 1:]
    return x


def on_device(x: Tensor | None, device: str) -> Tensor | None:
    """The same values in the same memory layout, which `Tensor.to` would tidy up."""
    if x is None or device == x.device.type:
        return x
    items = x.untyped_storage().nbytes() // x.element_size()
    storage = x.as_strided((items,), (1,), 0).to(device)
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())


@st.composite
def cases(draw, dtypes=FLOATS) -> Case:
    n = draw(st.one_of(st.integers(0, 40), st.sampled_from(EDGES), st.sampled_from(LONG_EDGES)))
    batches = [(), (1,), (3,), (2, 2), (0,)] if n <= 300 else [(), (2,)]
    return Case(
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.sampled_from(batches)),
        n=n,
        dtype=draw(st.sampled_from(dtypes)),
        values=draw(st.sampled_from(VALUES)),
        layout=draw(st.sampled_from(LAYOUTS)),
        mask=draw(st.sampled_from(MASKS)),
        share=draw(st.sampled_from(POSITIVES)),
        ties=draw(st.sampled_from(TIES)),
        descending=draw(st.booleans()),
        lam=draw(st.sampled_from((1e-30, 1e-3, 0.3, 5.0, 1e4, 1e30))),
        power=draw(st.integers(1, 4)),
        normalize=draw(st.sampled_from(("length", "none"))),
        reduction=draw(st.sampled_from(("mean", "sum", "none"))),
        gradient=draw(st.sampled_from(("dense", "sparse", "zero lists", "special", "one value"))),
    )


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Equal dtype, shape and values, NaN being equal to NaN: equal, not close."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
