"""Who is measured: ours and the competitors, each declared once per op.

A provider turns an op's inputs into the arguments of ``call``, which alone is timed; ``finish``
turns what it returns into the op's answer, for the gate.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rankreg_ext
from rankreg_ext import _backend, _hinge, losses, reference, use_backend

from . import baselines as b
from .cases import Case
from .training import Trainer

OURS = "rankreg_ext"
OURS_NUMPY = "rankreg_ext.arrays"
OURS_TRITON = "rankreg_ext.triton"
COMPILED = "+compile"


def optional(name: str) -> ModuleType | None:
    """The module, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


scipy_stats = optional("scipy.stats")
bottleneck = optional("bottleneck")
torchsort = optional("torchsort")
compat = optional("rankreg_ext.compat.scipy_stats")
arrays = optional("rankreg_ext.arrays")


def is_ours(name: str) -> bool:
    return name.removesuffix(COMPILED) in (OURS, OURS_NUMPY, OURS_TRITON)


def _as_is(*inputs: Any) -> tuple:
    return inputs


def _identity(output: Any, *inputs: Any) -> Any:
    return output


@dataclass(frozen=True)
class Provider:
    """``call(*prepare(case, *inputs))`` is what is timed.

    Attributes:
        finish: ``finish(output, *inputs)``, the op's answer; None if the provider computes
            something else, which ``note`` then explains.
        exact_ties: follows the op's rule for equal scores; otherwise it must agree elsewhere.
        dtypes: those it takes.
        limit: elements beyond which it is left out; on CUDA that is CUDA_LIMIT at least.
        devices: where it runs.
    """

    name: str
    call: Callable[..., Any]
    prepare: Callable[..., tuple] = _as_is
    finish: Callable[..., Any] | None = _identity
    exact_ties: bool = False
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float64")
    limit: int = 20_000_000
    note: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")

    def takes(self, case: Case, device: str) -> bool:
        limit = self.limit if device == "cpu" else max(self.limit, CUDA_LIMIT)
        return device in self.devices and case.dtype in self.dtypes and case.elements <= limit


UNLIMITED = 2**40
CUDA_LIMIT = 200_000_000
NUMPY = ("float32", "float64")
CPU, CUDA = ("cpu",), ("cuda",)
TORCH_RANKS = {"double_argsort": b.double_argsort, "argsort_scatter": b.argsort_scatter}


def ours(call: Callable, prepare: Callable = _as_is, **facts: Any) -> Provider:
    facts = {"name": OURS, "exact_ties": True, "limit": UNLIMITED, **facts}
    return Provider(call=call, prepare=prepare, **facts)


def _ours_numpy(call: Callable) -> Provider:
    return _numpy(OURS_NUMPY, call, finish=_tensor, exact_ties=True, note="from NumPy arrays")


def _numpy(name: str, call: Callable, prepare: Callable | None = None, **facts: Any) -> Provider:
    """On NumPy arrays, and so on the CPU."""
    facts = {"dtypes": NUMPY, "devices": CPU, **facts}
    return Provider(name, call, prepare or _arrays, **facts)


@cache
def _compiled(function: Callable, fullgraph: bool) -> Callable:
    return torch.compile(function, dynamic=False, fullgraph=fullgraph)


def compiled(function: Callable, fullgraph: bool = False) -> Callable:
    """The same under ``torch.compile``, which is loaded by the first call."""
    return lambda *arguments: _compiled(function, fullgraph)(*arguments)


def _ours_compiled(call: Callable, prepare: Callable) -> Provider:
    """A whole step, whose forward and backward inductor compiles; our ops are parts of its graph.

    The same function must not serve two back-ends: code is compiled for the one asked for.
    """
    return ours(call, prepare, devices=CUDA, name=OURS + COMPILED, note="the step under compile")


def _in_triton(provider: Provider) -> Provider:
    """The same with the kernels in Triton. Choosing them costs a microsecond of the host's time."""

    def within(function: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            with use_backend("triton"):
                return function(*arguments)

        return call

    name = OURS_TRITON + provider.name.removeprefix(OURS)
    return replace(
        provider, name=name, call=within(provider.call), prepare=within(provider.prepare)
    )


def _arrays(*inputs: Tensor) -> tuple:
    """One list as a vector, several as a matrix."""
    return tuple(x.squeeze(0).numpy() for x in inputs)


def _leaf(x: Tensor, *rest: Tensor) -> tuple:
    return (x.clone().requires_grad_(), *rest)


def _tensor(output: Any, *inputs: Tensor) -> Tensor:
    return torch.as_tensor(output)


def _reverse(output: Any, x: Tensor) -> Tensor:
    """Ascending ranks, ties at their worst, as descending ranks, ties at their best."""
    return x.shape[-1] + 1 - torch.as_tensor(output)


# ------------------------------------------------------------------------------------------- rank


def _rank_providers() -> list[Provider]:
    providers = [
        ours(rankreg_ext.rank),
        *(Provider(name, rank) for name, rank in TORCH_RANKS.items()),
        *(
            Provider(name + COMPILED, compiled(rank), devices=CUDA)
            for name, rank in TORCH_RANKS.items()
        ),
        Provider(
            "torch.sort",
            lambda x: x.sort(-1, descending=True),
            finish=lambda out, x: b.scatter_places(out.indices, x),
            note="the sort alone, no ranks made",
        ),
        _numpy("numpy.argsort", b.numpy_argsort, finish=_tensor),
        _numpy("packed_sort", b.packed_sort, finish=_tensor, dtypes=NUMPY[:1]),
        _numpy(
            "packed_sort_alone",
            partial(np.sort, axis=-1),
            lambda x: (b.pack(*_arrays(x)),),
            finish=lambda out, x: _tensor(b.numpy_scatter(b.unpack(out), *_arrays(x))),
            dtypes=NUMPY[:1],
            note="np.sort of ready packed keys, a lower bound of that method; no ranks made",
        ),
    ]
    if arrays:
        providers.insert(1, _ours_numpy(arrays.rank))
    if scipy_stats:
        call = partial(scipy_stats.rankdata, method="max", axis=-1)
        note = "ascending ranks"
        providers.append(_numpy("scipy", call, finish=_reverse, exact_ties=True, note=note))
    if bottleneck:
        note = "ascending ranks, average ties"
        call = partial(bottleneck.rankdata, axis=-1)
        providers.append(_numpy("bottleneck", call, finish=_reverse, note=note))
    if torchsort:
        note = "another function: soft ranks by isotonic regression"
        providers.append(
            Provider("torchsort", torchsort.soft_rank, finish=None, dtypes=NUMPY[:1],
                     limit=200_000, note=note, devices=CPU)
        )  # fmt: skip
    return providers


def _rankdata_providers() -> list[Provider]:
    note = "ordinal ranks"
    providers = [
        _numpy("numpy.argsort", partial(b.numpy_argsort, ascending=True), finish=_tensor, note=note)
    ]
    if compat:
        call = partial(compat.rankdata, axis=-1)
        providers.insert(0, ours(call, _arrays, finish=_tensor, dtypes=NUMPY, devices=CPU))
    if scipy_stats:
        call = partial(scipy_stats.rankdata, axis=-1)
        providers.append(_numpy("scipy", call, finish=_tensor, exact_ties=True))
    if bottleneck:
        call = partial(bottleneck.rankdata, axis=-1)
        providers.append(_numpy("bottleneck", call, finish=_tensor, exact_ties=True))
    return providers


# --------------------------------------------------------------------------------------- blackbox


def _leaf_and_gradient(x: Tensor, g: Tensor) -> tuple:
    """The gradient that arrives has the ranks' dtype."""
    return (*_leaf(x), g.to(reference.rank_dtype(x.dtype, x.shape[-1])))


def _kept_graph(x: Tensor, g: Tensor) -> tuple:
    leaf, g = _leaf_and_gradient(x, g)
    return rankreg_ext.blackbox_rank(leaf, b.LAM), leaf, g


def _graph_backward(output: Tensor, leaf: Tensor, g: Tensor | None = None) -> Tensor:
    """Backward alone, through autograd, on a graph that stays."""
    return torch.autograd.grad(output, leaf, g, retain_graph=True)[0]


def _step(rank: Callable, leaf: Tensor, g: Tensor) -> Tensor:
    leaf.grad = None
    rank(leaf).backward(g)
    return leaf.grad


def _with_ranks(x: Tensor, *rest: Tensor) -> tuple:
    return x, rest[-1], b.argsort_scatter(x)


def _blackbox_backward_providers() -> list[Provider]:
    return [
        ours(_graph_backward, _kept_graph, note="through autograd"),
        *(
            Provider(name, partial(b.blackbox_backward, rank), _with_ranks)
            for name, rank in TORCH_RANKS.items()
        ),
        *(
            Provider(name + COMPILED, compiled(_backward_by(rank)), _with_ranks, devices=CUDA)
            for name, rank in TORCH_RANKS.items()
        ),
    ]


@cache  # one and the same function for each rank, so that it is compiled once
def _backward_by(rank: Callable) -> Callable:
    def backward(x: Tensor, g: Tensor, ranks: Tensor) -> Tensor:
        return b.blackbox_backward(rank, x, g, ranks)

    return backward


def _blackbox_rank(x: Tensor) -> Tensor:
    return rankreg_ext.blackbox_rank(x, b.LAM)


def _blackbox_step_providers() -> list[Provider]:
    def plain(rank: Callable) -> Callable:
        return lambda x: b.BlackboxRanker.apply(x, rank)

    providers = [
        ours(partial(_step, _blackbox_rank), _leaf_and_gradient),
        _ours_compiled(partial(_step, compiled(_blackbox_rank, True)), _leaf_and_gradient),
        *(
            Provider(name, partial(_step, plain(rank)), _leaf_and_gradient)
            for name, rank in TORCH_RANKS.items()
        ),
    ]
    if torchsort:
        note = "another function: soft ranks by isotonic regression"
        providers.append(
            Provider("torchsort", partial(_step, torchsort.soft_rank), _leaf_and_gradient, None,
                     dtypes=NUMPY[:1], limit=200_000, note=note, devices=CPU)
        )  # fmt: skip
    return providers


# -------------------------------------------------------------------------------- a few positives


def _positive_ranks_providers() -> list[Provider]:
    return [
        ours(rankreg_ext.positive_ranks),
        Provider("searchsorted", b.positive_ranks_by_search, exact_ties=True, limit=UNLIMITED),
        *(
            Provider(name, partial(b.positive_ranks_by_rank, rank))
            for name, rank in TORCH_RANKS.items()
        ),
    ]


def _ranks_graph(x: Tensor, positives: Tensor, g: Tensor) -> tuple:
    (leaf,) = _leaf(x)
    return rankreg_ext.positive_ranks(leaf, positives, lam=b.LAM), leaf, g


def _positive_ranks_backward_providers() -> list[Provider]:
    def searched(x: Tensor, positives: Tensor, g: Tensor) -> tuple:
        return x, positives, g, b.counted_ranks(x, b.at(positives, x))

    return [
        ours(_graph_backward, _ranks_graph, note="through autograd"),
        Provider(
            "searchsorted", b.positive_ranks_backward_by_search, searched, exact_ties=True
        ),
        *(
            Provider(name, partial(b.blackbox_backward, rank), _with_ranks)
            for name, rank in TORCH_RANKS.items()
        ),
    ]  # fmt: skip


def _plain_loss(rank: Callable | None) -> Callable:
    return lambda x, positives: b.PlainRankReg.apply(x, positives, rank)


def _masked_loss(rank: Callable) -> Callable:
    return lambda x, positives: b.MaskedRankReg.apply(x, positives, rank)


def _by_rank(call: Callable[[Callable], Callable], prepare: Callable = _as_is) -> list[Provider]:
    """Losses by whole ranks; on CUDA in the form for which the host need not wait."""
    forms = ((_plain_loss, CPU), (_masked_loss, CUDA))
    return [
        Provider(name, call(form(rank)), prepare, devices=devices)
        for name, rank in TORCH_RANKS.items()
        for form, devices in forms
    ]


def _loss(x: Tensor, positives: Tensor) -> Tensor:
    return rankreg_ext.rankreg_loss(x, positives, lam=b.LOSS_LAM)


def _loss_providers() -> list[Provider]:
    providers = [ours(_loss)]
    if arrays:
        providers.append(_ours_numpy(partial(arrays.rankreg_loss, lam=b.LOSS_LAM)))
    searched = _plain_loss(None)
    providers.append(Provider("searchsorted", searched, exact_ties=True, limit=UNLIMITED))
    return providers + _by_rank(lambda loss: loss)


def _loss_backward_providers() -> list[Provider]:
    def ours_kept(x: Tensor, positives: Tensor) -> tuple:
        (leaf,) = _leaf(x)
        return _loss(leaf, positives), leaf

    def searched(x: Tensor, positives: Tensor) -> tuple:
        return x, positives, b.counted_ranks(x, b.at(positives, x))

    def ranked(x: Tensor, positives: Tensor) -> tuple:
        ranks = b.argsort_scatter(x)
        return x, positives, b.at(positives, ranks), ranks

    return [
        ours(_graph_backward, ours_kept, note="through autograd"),
        Provider("searchsorted", b.loss_backward_by_search, searched, exact_ties=True),
        *(
            Provider(name, partial(b.loss_backward_by_rank, rank), ranked)
            for name, rank in TORCH_RANKS.items()
        ),
    ]  # fmt: skip


def _loss_step_providers() -> list[Provider]:
    def step(loss: Callable, leaf: Tensor, positives: Tensor) -> Tensor:
        leaf.grad = None
        loss(leaf, positives).backward()
        return leaf.grad

    return [
        ours(partial(step, _loss), _leaf),
        _ours_compiled(partial(step, compiled(_loss, True)), _leaf),
        Provider("searchsorted", partial(step, _plain_loss(None)), _leaf, exact_ties=True),
        *_by_rank(lambda loss: partial(step, loss), _leaf),
    ]


# ------------------------------------------------------------------------------- hinge violations


def _hinges(x: Tensor, positives: Tensor) -> Tensor:
    return losses.hinge_violations(x, positives, b.DELTA)


def _sorted_hinges(x: Tensor, positives: Tensor) -> Tensor:
    return _hinge.hinge_violations(x, positives, b.DELTA, None)


def _hinge_providers() -> list[Provider]:
    def everywhere(q: Tensor, x: Tensor, positives: Tensor) -> Tensor:
        return x.new_zeros(x.shape, dtype=q.dtype).masked_scatter_(positives, q)

    return [
        ours(_hinges),
        Provider("sorted", _sorted_hinges, exact_ties=True),
        Provider("broadcast", b.hinge_by_broadcast, finish=everywhere, dtypes=NUMPY),
    ]


def _hinge_step_providers() -> list[Provider]:
    def step(hinge: Callable, leaf: Tensor, positives: Tensor) -> Tensor:
        leaf.grad = None
        hinge(leaf, positives).sum().backward()
        return leaf.grad

    return [
        ours(partial(step, _hinges), _leaf),
        _ours_compiled(partial(step, compiled(_hinges, True)), _leaf),
        Provider("sorted", partial(step, _sorted_hinges), _leaf, exact_ties=True),
        Provider("broadcast", partial(step, b.hinge_by_broadcast), _leaf, dtypes=NUMPY),
    ]


def _training_providers(case: Case) -> list[Provider]:
    """Trainers hold their network, so each call is the next step of a training run."""
    plain = {"no_rank_loss": None, "plain_argsort": _plain_loss(b.double_argsort)}
    providers = []
    for name, loss in {OURS: _loss, **plain}.items():
        trainer = Trainer(case.values, loss)
        providers.append(
            Provider(
                name,
                trainer.step,
                finish=(lambda out, *inputs, t=trainer: t.fresh_gradients(*inputs))
                if loss
                else None,
                note="" if loss else "the step without a rank loss, for comparison",
                devices=CPU,
            )
        )
    return providers


PROVIDERS: dict[str, Callable[..., list[Provider]]] = {
    "rank": _rank_providers,
    "blackbox_backward": _blackbox_backward_providers,
    "blackbox_step": _blackbox_step_providers,
    "positive_ranks": _positive_ranks_providers,
    "positive_ranks_backward": _positive_ranks_backward_providers,
    "rankreg_loss": _loss_providers,
    "rankreg_loss_backward": _loss_backward_providers,
    "rankreg_loss_step": _loss_step_providers,
    "hinge_violations": _hinge_providers,
    "hinge_violations_step": _hinge_step_providers,
    "rankdata": _rankdata_providers,
}


def providers_of(case: Case, wanted: tuple[str, ...] = (), device: str = "cpu") -> list[Provider]:
    """The providers that take the case, ours first; only those wanted if any are named."""
    if case.op == "training_step":
        found = _training_providers(case)
    else:
        found = PROVIDERS[case.op]()
        if device == "cuda" and _backend.usable("triton") is None:
            found += [_in_triton(p) for p in found if p.name.removesuffix(COMPILED) == OURS]
    return [p for p in found if p.takes(case, device) and (not wanted or p.name in wanted)]
