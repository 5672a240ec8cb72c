"""Registered operators: schemas, fakes, autograd and vmap rules of every op, in one place.

The only module that touches ``torch.ops.rankreg_ext``. Every op works on lists along the last
dimension. C++ implements the ops for one device each; on a GPU without such a library Triton does,
and where no kernel can be had the dispatcher falls back to :mod:`rankreg_ext.reference`, so an op
always exists. ``torch.ops.rankreg_ext_triton`` has the same ops in Triton alone, for
``use_backend("triton")``.

``lam`` travels as a float, or as a 0-dim tensor in ``lam_tensor``, which then takes precedence and
is never read on the host; so does ``delta``. ``ties``, ``normalize`` and ``reduction`` are indices
into the tuples below.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active

from . import _backend, _hinge, _triton, reference
from .reference import TIES, compute_dtype, rank_dtype

NORMALIZE = ("none", "length")
REDUCTION = ("none", "sum", "mean")
# The ranks of a list's positives are kept from forward to backward if there are at most this many;
# those of a list with more are counted again. A bound known beforehand keeps the shape of `state`
# free of the data: what the reduction divided by, then the ranks in index order, then zeros.
STATE_CAPACITY = 256

_LAM = "float lam, Tensor? lam_tensor"
_RANK = "bool descending, int ties, Tensor? where"
_HINGE = "Tensor scores, Tensor positives, float delta, Tensor? delta_tensor, Tensor? where"
_LOSS = f"{_LAM}, int power, int normalize, Tensor? where"
_SCHEMAS = (
    f"rank(Tensor x, {_RANK}) -> Tensor",
    f"blackbox_rank(Tensor x, {_LAM}, {_RANK}) -> Tensor",
    f"blackbox_rank_backward(Tensor grad, Tensor x, Tensor ranks, {_LAM}, {_RANK}) -> Tensor",
    f"positive_ranks(Tensor scores, Tensor positives, {_LAM}, Tensor? where) -> Tensor",
    "positive_ranks_backward(Tensor grad, Tensor scores, Tensor positives, Tensor ranks, "
    f"{_LAM}, Tensor? where) -> Tensor",
    f"rankreg_loss(Tensor scores, Tensor positives, {_LOSS}, int reduction)"
    " -> (Tensor loss, Tensor state)",
    "rankreg_loss_backward(Tensor grad, Tensor scores, Tensor positives, Tensor state, "
    f"{_LOSS}) -> Tensor",
    f"hinge_violations({_HINGE}) -> Tensor",
    f"hinge_violations_backward(Tensor grad, {_HINGE}) -> Tensor",
)

NAMES = tuple(schema.split("(")[0] for schema in _SCHEMAS)


# --- fallback on every device without a kernel of its own -----------------------------------------


def _rank(x, descending, ties, where):
    return reference.rank(x, descending=descending, ties=TIES[ties], where=where).contiguous()


def _blackbox_rank(x, lam, lam_tensor, descending, ties, where):
    return _rank(x, descending, ties, where)


def _blackbox_rank_backward(grad, x, ranks, lam, lam_tensor, descending, ties, where):
    lam = lam if lam_tensor is None else lam_tensor
    gradient = reference.blackbox_rank_backward(grad, x, ranks, lam, descending, TIES[ties], where)
    return gradient.contiguous()


def _positive_ranks(scores, positives, lam, lam_tensor, where):
    return reference.positive_ranks(scores, positives, where=where).contiguous()


def _positive_ranks_backward(grad, scores, positives, ranks, lam, lam_tensor, where):
    # The kernels need only the positives' ranks; the definition needs them all.
    positives = positives if where is None else positives & where
    grad = torch.where(positives, grad, 0)
    ranks = reference.rank(scores, where=where)
    return _blackbox_rank_backward(grad, scores, ranks, lam, lam_tensor, True, 0, where)


def _rankreg_loss(scores, positives, lam, lam_tensor, power, normalize, where, reduction):
    loss = reference.rankreg_loss(
        scores.detach(),
        positives,
        lam=lam if lam_tensor is None else lam_tensor,
        power=power,
        normalize=NORMALIZE[normalize],
        where=where,
        reduction=REDUCTION[reduction],
    )
    positives = positives if where is None else positives & where
    ranks = _positive_ranks(scores, positives, lam, lam_tensor, where)
    order = positives.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    ranks = ranks.gather(-1, order[..., :STATE_CAPACITY])
    ranks = torch.where(positives.sum(-1, keepdim=True) <= STATE_CAPACITY, ranks, 0)
    divisor = ranks.new_ones((*ranks.shape[:-1], 1))
    if REDUCTION[reduction] == "mean":
        divisor = divisor * positives.any(-1).sum().clamp(min=1)
    return loss, torch.cat([divisor, ranks], -1)


def _rankreg_loss_backward(
    grad, scores, positives, state, lam, lam_tensor, power, normalize, where
):
    where = torch.ones_like(positives) if where is None else where
    dtype = compute_dtype(scores.dtype)
    gradient = reference.rankreg_loss_backward(
        grad.to(dtype) / state[..., 0].to(dtype),
        scores,
        positives & where,
        lam if lam_tensor is None else lam_tensor,
        power,
        NORMALIZE[normalize],
        where,
    )
    return gradient.contiguous()


def _hinge_violations(scores, positives, delta, delta_tensor, where):
    delta = delta if delta_tensor is None else delta_tensor
    return _hinge.hinge_violations(scores.detach(), positives, delta, where).contiguous()


def _hinge_violations_backward(grad, scores, positives, delta, delta_tensor, where):
    delta = delta if delta_tensor is None else delta_tensor
    return _hinge.transposed(grad.detach(), scores, positives, delta, where).contiguous()


# --- shapes and dtypes ----------------------------------------------------------------------------


def _fake_rank(x, descending, ties, where):
    return x.new_empty(x.shape, dtype=rank_dtype(x.dtype, x.shape[-1], TIES[ties]))


def _fake_blackbox_rank(x, lam, lam_tensor, descending, ties, where):
    return _fake_rank(x, descending, ties, where)


def _fake_positive_ranks(scores, positives, lam, lam_tensor, where):
    return scores.new_empty(scores.shape, dtype=rank_dtype(scores.dtype, scores.shape[-1]))


def _fake_rankreg_loss(scores, positives, lam, lam_tensor, power, normalize, where, reduction):
    *lists, n = scores.shape
    loss = scores.new_empty(
        lists if REDUCTION[reduction] == "none" else (), dtype=compute_dtype(scores.dtype)
    )
    kept = torch.sym_min(n, STATE_CAPACITY)
    return loss, scores.new_empty((*lists, 1 + kept), dtype=rank_dtype(scores.dtype, n))


def _fake_hinge_violations(scores, positives, delta, delta_tensor, where):
    return scores.new_empty(scores.shape, dtype=compute_dtype(scores.dtype))


def _fake_gradient(grad, x, *args):
    return x.new_empty(x.shape)


# --- autograd: backward rules, called with the ops of the set they belong to ----------------------


def _keep(*tensors: int):
    """A setup_context that saves the inputs at ``tensors`` and the last output, and the rest."""

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(
            *(inputs[i] for i in tensors), output[-1] if isinstance(output, tuple) else output
        )
        ctx.inputs = [None if isinstance(v, Tensor) else v for v in inputs]

    return setup_context


def _blackbox_rank_autograd(call, ctx, grad):
    _, lam, _, descending, ties, _ = ctx.inputs
    x, lam_tensor, where, ranks = ctx.saved_tensors
    gradient = call(
        "blackbox_rank_backward", grad, x, ranks, lam, lam_tensor, descending, ties, where
    )
    return gradient, None, None, None, None, None


def _positive_ranks_autograd(call, ctx, grad):
    lam = ctx.inputs[2]
    scores, positives, lam_tensor, where, ranks = ctx.saved_tensors
    gradient = call(
        "positive_ranks_backward", grad, scores, positives, ranks, lam, lam_tensor, where
    )
    return gradient, None, None, None, None


def _rankreg_loss_autograd(call, ctx, grad, _):
    _, _, lam, _, power, normalize, _, _ = ctx.inputs
    scores, positives, lam_tensor, where, state = ctx.saved_tensors
    gradient = call(
        "rankreg_loss_backward",
        grad,
        scores,
        positives,
        state,
        lam,
        lam_tensor,
        power,
        normalize,
        where,
    )
    return gradient, None, None, None, None, None, None, None


def _keep_inputs(*tensors: int):
    """As `_keep`, without the output."""

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*(inputs[i] for i in tensors))
        ctx.inputs = [None if isinstance(v, Tensor) else v for v in inputs]

    return setup_context


def _hinge_violations_autograd(call, ctx, grad):
    delta = ctx.inputs[2]
    scores, positives, delta_tensor, where = ctx.saved_tensors
    gradient = call(
        "hinge_violations_backward", grad, scores, positives, delta, delta_tensor, where
    )
    return gradient, None, None, None, None


def _hinge_violations_backward_autograd(call, ctx, change):
    """Of a function linear in ``grad`` and piecewise constant in the scores."""
    delta = ctx.inputs[3]
    scores, positives, delta_tensor, where = ctx.saved_tensors
    delta = delta if delta_tensor is None else delta_tensor
    return _hinge.jacobian(change, scores, positives, delta, where), None, None, None, None, None


def _no_second_derivative(call, ctx, *_):
    raise RuntimeError(reference.NO_SECOND_DERIVATIVE)


def _keep_nothing(ctx, inputs, output):
    pass


# Backward and setup_context of every op with a floating-point result but `rank`.
_AUTOGRAD = {
    "blackbox_rank": (_blackbox_rank_autograd, _keep(0, 2, 5)),
    "blackbox_rank_backward": (_no_second_derivative, _keep_nothing),
    "positive_ranks": (_positive_ranks_autograd, _keep(0, 1, 3, 4)),
    "positive_ranks_backward": (_no_second_derivative, _keep_nothing),
    "rankreg_loss": (_rankreg_loss_autograd, _keep(0, 1, 3, 6)),
    "rankreg_loss_backward": (_no_second_derivative, _keep_nothing),
    "hinge_violations": (_hinge_violations_autograd, _keep_inputs(0, 1, 3, 4)),
    "hinge_violations_backward": (
        _hinge_violations_backward_autograd,
        _keep_inputs(1, 2, 4, 5),
    ),
}


# --- vmap: the mapped dimension becomes one more batch dimension in front -------------------------


def _vmap(op, name: str, rankreg_loss):
    """The rule of op ``name``: mapped tensors get the new dimension in front, others expand to it.

    A mapped ``lam_tensor`` or ``delta_tensor`` would need one value per list, which no kernel has:
    that case is a loop.
    """
    names = [argument.name for argument in op._schema.arguments]
    lam_at = next((i for i, n in enumerate(names) if n in ("lam_tensor", "delta_tensor")), None)

    def rule(info, in_dims, *args):
        size = info.batch_size
        if lam_at is not None and in_dims[lam_at] is not None:
            rows = [
                op(
                    *(
                        a if d is None else a.select(d, i)
                        for a, d in zip(args, in_dims, strict=True)
                    )
                )
                for i in range(size)
            ]
            if not isinstance(rows[0], tuple):
                return torch.stack(rows), 0
            return tuple(torch.stack(column) for column in zip(*rows, strict=True)), (0, 0)
        args = [
            _front(a, d, size) if isinstance(a, Tensor) and i != lam_at else a
            for i, (a, d) in enumerate(zip(args, in_dims, strict=True))
        ]
        if name == "rankreg_loss":
            return _rankreg_loss_mapped(rankreg_loss, *args), (0, 0)
        if name == "rankreg_loss_backward":  # one upstream value for all lists of an example
            lists = args[1].shape[:-1]
            args[0] = args[0].reshape(size, *[1] * (len(lists) - args[0].dim()), *args[0].shape[1:])
            args[0] = args[0].expand(lists)
        return op(*args), 0

    return rule


def _front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _rankreg_loss_mapped(
    op, scores, positives, lam, lam_tensor, power, normalize, where, reduction
):
    """Lists ``(size, ..., n)``, reduced within each of the ``size`` examples."""
    none = REDUCTION.index("none")
    losses, state = op(scores, positives, lam, lam_tensor, power, normalize, where, none)
    if reduction == none or losses.dim() == 1:
        return losses, state
    lists = tuple(range(1, losses.dim()))
    loss = losses.double().sum(lists)
    if REDUCTION[reduction] == "mean":
        some = positives if where is None else positives & where
        count = some.any(-1).sum(lists).clamp(min=1)
        loss = loss / count
        divisor = count.to(state.dtype).reshape(-1, *[1] * (state.dim() - 1))
        state = torch.cat([divisor.expand(state[..., :1].shape), state[..., 1:]], -1)
    return loss.to(losses.dtype), state


# --- registration ---------------------------------------------------------------------------------

_FALLBACKS = (
    _rank,
    _blackbox_rank,
    _blackbox_rank_backward,
    _positive_ranks,
    _positive_ranks_backward,
    _rankreg_loss,
    _rankreg_loss_backward,
    _hinge_violations,
    _hinge_violations_backward,
)
_FAKES = (
    _fake_rank,
    _fake_blackbox_rank,
    _fake_gradient,
    _fake_positive_ranks,
    _fake_gradient,
    _fake_rankreg_loss,
    _fake_gradient,
    _fake_hinge_violations,
    _fake_gradient,
)


class OpSet:
    """The ops of one namespace, with every rule; kernels are added to ``library``."""

    def __init__(self, namespace: str):
        self.namespace = namespace
        self.library = torch.library.Library(namespace, "DEF")
        for schema in _SCHEMAS:
            self.library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.ops = getattr(torch.ops, namespace)
        self.functions = {}
        for name, fake in zip(NAMES, _FAKES, strict=True):
            qualified, op = f"{namespace}::{name}", getattr(self.ops, name).default
            torch.library.register_fake(qualified, fake, lib=self.library)
            vmap = _vmap(op, name, self.ops.rankreg_loss.default)
            torch.library.register_vmap(qualified, vmap, lib=self.library)
            if name in _AUTOGRAD:
                backward, setup_context = _AUTOGRAD[name]
                backward = partial(backward, self.call)
                torch.library.register_autograd(
                    qualified, backward, setup_context=setup_context, lib=self.library
                )
                self.functions[name] = _function(op, backward, setup_context)

    def call(self, name: str, *args):
        """Op ``name``, differentiable in every context but the eager hot path (functional.py).

        The dispatcher's autograd rules do not compose with ``torch.func``; an ``autograd.Function``
        of the same rule does.
        """
        if _are_functorch_transforms_active() and not torch.compiler.is_compiling():
            return self.functions[name].apply(*args)
        return getattr(self.ops, name)(*args)


def _function(op, backward, setup_context) -> type[torch.autograd.Function]:
    rules = {
        "forward": lambda *args: op(*args),
        "backward": backward,
        "setup_context": setup_context,
    }
    rules = {key: staticmethod(rule) for key, rule in rules.items()}
    name = op._schema.name.split("::")[1]
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **rules})


# The best kernels that there are for a device, and those in Triton.
BEST, TRITON = OpSet("rankreg_ext"), OpSet("rankreg_ext_triton")
ops = BEST.ops
_backend.load_native()

for _name, _fallback in zip(NAMES, _FALLBACKS, strict=True):
    BEST.library.impl(_name, _fallback, "CompositeExplicitAutograd")
    for _device in _backend.devices_without_native_kernels():
        BEST.library.impl(_name, _triton.kernel_or(_name, _fallback), _device.upper())
    TRITON.library.impl(_name, _triton.kernel(_name, _fallback), "CompositeExplicitAutograd")
    _triton.make_visible(BEST, _name, _backend.served_by_triton)
    _triton.make_visible(TRITON, _name, lambda device: True)
