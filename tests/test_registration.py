"""The ops as citizens of torch: opcheck, compile, torch.func, autocast, second derivatives."""

import pytest
import torch
from samples import BACKENDS, FLOATS, assert_equal, laid_out, on_device, values_of

import rankreg_ext
from rankreg_ext import _ops, blackbox_rank, positive_ranks, rank, rankreg_loss, reference
from rankreg_ext.reference import NO_SECOND_DERIVATIVE

ops = torch.ops.rankreg_ext
SHAPES = {"lists": (2, 3, 17), "one list": (300,), "no lists": (2, 0, 5), "empty lists": (2, 3, 0)}
LAYOUTS = ("contiguous", "permuted", "strided")


def inputs(shape, layout, dtype, special=False):
    g = torch.Generator().manual_seed(1)
    x = laid_out(values_of("special" if special else "tied", shape, dtype, g), layout)
    positives = torch.rand(shape, generator=g) < 0.2
    where = laid_out(torch.rand(shape, generator=g) < 0.8, layout)
    return x, positives, where


# opcheck looks at registration, not at numbers: dtypes and layouts need not be crossed.
@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [(name, layout, torch.float32) for name in SHAPES for layout in LAYOUTS]
    + [("lists", "contiguous", dtype) for dtype in FLOATS if dtype != torch.float32],
    ids=str,
)
@pytest.mark.parametrize("device", BACKENDS)
def test_opcheck(device, shape, layout, dtype):
    """Schemas, autograd registration, fakes and AOT dispatch of every op."""
    tensors = inputs(SHAPES[shape], layout, dtype)
    x, positives, where = (on_device(item, device) for item in tensors)
    differentiable = x.detach().clone().requires_grad_()
    lam_tensor = torch.tensor(1.5, device=device)
    check = torch.library.opcheck

    check(ops.rank.default, (x, True, 0, None))
    check(ops.rank.default, (x, False, 2, where))
    check(ops.blackbox_rank.default, (differentiable, 1.5, None, True, 1, where))
    ranks = rank(x, where=where)
    grad = torch.randn_like(ranks)
    check(ops.blackbox_rank_backward.default, (grad, x, ranks, 1.5, None, True, 0, where))
    check(ops.positive_ranks.default, (differentiable, positives, 1.0, lam_tensor, where))
    args = (grad, x, positives, positive_ranks(x, positives), 1.5, None, None)
    check(ops.positive_ranks_backward.default, args)
    if layout == "contiguous":
        args = (positives, 1.5, lam_tensor, where)
        check(ops.hinge_violations.default, (differentiable, *args))
        sums = torch.ones_like(ops.hinge_violations(x, *args)).requires_grad_()
        check(ops.hinge_violations_backward.default, (sums, x, *args))
    for reduction in range(len(_ops.REDUCTION)):
        args = (positives, 1.5, None, 2, 1, where)
        check(ops.rankreg_loss.default, (differentiable, *args, reduction))
        loss, state = ops.rankreg_loss(x, *args, reduction)
        args = (torch.ones_like(loss), x, positives, state, 1.5, None, 2, 1, where)
        check(ops.rankreg_loss_backward.default, args)


@pytest.mark.parametrize("device", BACKENDS)
def test_every_op_has_a_native_kernel_and_a_fallback(device):
    for schema in _ops._SCHEMAS:
        name = "rankreg_ext::" + schema.split("(")[0]
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        assert has(name, device.upper()), name
        assert has(name, "CompositeExplicitAutograd"), name


@pytest.mark.parametrize("shape", [(2, 3, 17), (300,)], ids=str)
@pytest.mark.parametrize("device", BACKENDS)
def test_fallback_and_native_kernel_agree_op_by_op(device, shape):
    """Also the state between forward and backward, which no public function shows."""
    tensors = inputs(shape, "contiguous", torch.float32, special=True)
    x, positives, where = (on_device(item, device) for item in tensors)
    args = (positives, 2.0, None, 2, 1, where, 2)
    native, fallback = ops.rankreg_loss(x, *args), _ops._rankreg_loss(x, *args)
    assert_equal(native[1], fallback[1])
    torch.testing.assert_close(native[0], fallback[0], equal_nan=True)
    grad = torch.ones((), device=device)
    args = (grad, x, positives, native[1], 2.0, None, 2, 1, where)
    assert_equal(ops.rankreg_loss_backward(*args), _ops._rankreg_loss_backward(*args))
    ranks = positive_ranks(x, positives, where=where)
    args = (torch.randn_like(x), x, positives, ranks, 2.0, None, where)
    assert_equal(ops.positive_ranks_backward(*args), _ops._positive_ranks_backward(*args))


def everything(x, positives, where, lam):
    ranks = blackbox_rank(x, lam, ties="average") * rank(x, where=where)
    some = positive_ranks(x, positives, lam=lam, where=where)
    return ranks.sum() + (some**2).sum() + rankreg_loss(x, positives, lam=lam)


@pytest.mark.parametrize("dynamic", [False, True, None])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(dynamic, backend):
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=dynamic, backend=backend)
    for n in (17, 300):  # a compilation each, where shapes are static
        x, positives, where = inputs((2, 3, n), "contiguous", torch.float32)
        x.requires_grad_()
        for lam in (1.5, 2.5, torch.tensor(3.0)):
            actual, expected = (f(x, positives, where, lam) for f in (compiled, everything))
            torch.testing.assert_close(actual, expected)
            assert_equal(*(torch.autograd.grad(f, x)[0] for f in (actual, expected)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compile_follows_the_chosen_backend(backend):
    torch._dynamo.reset()
    x, positives, where = inputs((2, 17), "contiguous", torch.float32)
    x.requires_grad_()
    with rankreg_ext.use_backend(backend):
        loss = torch.compile(everything, fullgraph=True, backend="aot_eager")(
            x, positives, where, 2.0
        )
        assert_equal(
            torch.autograd.grad(loss, x)[0],
            torch.autograd.grad(everything(x, positives, where, 2.0), x)[0],
        )


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_vmap_and_grad(backend, reduction):
    """A mapped dimension gives what a loop gives, for values and gradients."""
    x, positives, where = inputs((3, 4, 17), "contiguous", torch.float32)

    def loss(x, positives, where):
        return rankreg_loss(x, positives, lam=2.0, where=where, reduction=reduction)

    def total(x, positives, where):
        return (loss(x, positives, where) * 3).sum() + everything(x, positives, where, 2.0)

    with rankreg_ext.use_backend(backend):
        rows = list(zip(x, positives, where, strict=True))
        torch.testing.assert_close(
            torch.func.vmap(loss)(x, positives, where), torch.stack([loss(*row) for row in rows])
        )
        grad = torch.func.grad(total)
        loop = torch.stack([grad(*row) for row in rows])
        torch.testing.assert_close(torch.func.vmap(grad)(x, positives, where), loop)
        eager = x.clone().requires_grad_()
        sum(total(a, p, w) for a, p, w in zip(eager, positives, where, strict=True)).backward()
        torch.testing.assert_close(eager.grad, loop)
        # unmapped masks, another mapped dimension, and a mapped lam
        torch.testing.assert_close(
            torch.func.vmap(loss, in_dims=(1, None, None))(x.movedim(0, 1), positives[0], where[0]),
            torch.stack([loss(row, positives[0], where[0]) for row in x]),
        )
        assert_equal(torch.func.vmap(rank, in_dims=1, out_dims=1)(x), rank(x))
        lams = torch.tensor([1.0, 4.0])
        by_lam = torch.func.grad(lambda x, lam: (blackbox_rank(x, lam) ** 2).sum())
        assert_equal(
            torch.func.vmap(by_lam, in_dims=(None, 0))(x[0], lams),
            torch.stack([by_lam(x[0], lam) for lam in lams]),
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: blackbox_rank(x, 1.0).square().sum(),
        lambda x: positive_ranks(x, x > 0.5, lam=1.0).square().sum(),
        lambda x: rankreg_loss(x, x < 0.5, lam=5.0),
    ],
)
def test_a_tensor_that_outlived_its_transform_still_has_a_gradient(function):
    x = torch.rand(9, requires_grad=True)
    leaked = []
    torch.func.grad(lambda inner: (leaked.append(inner), inner.sum())[1])(x)
    (expected,) = torch.autograd.grad(function(x), x)
    assert expected.any()
    function(leaked[0]).backward()
    assert_equal(x.grad, expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, p: blackbox_rank(x, 1.0).sum(),
        lambda x, p: (blackbox_rank(x, 1.0) ** 2).sum(),
        lambda x, p: positive_ranks(x, p, lam=1.0).sum(),
        lambda x, p: rankreg_loss(x, p, lam=1.0),
    ],
)
def test_second_derivative_raises(backend, function):
    """Never a silent zero: not through autograd, not through torch.func."""
    x, positives, _ = inputs((17,), "contiguous", torch.float32)
    with rankreg_ext.use_backend(backend):
        y = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(y, positives), y, create_graph=True)
        with pytest.raises(RuntimeError, match=NO_SECOND_DERIVATIVE):
            torch.autograd.grad(grad.sum(), y)
        with pytest.raises(RuntimeError, match=NO_SECOND_DERIVATIVE):
            torch.func.grad(lambda a: torch.func.grad(function)(a, positives).sum())(x)


def test_a_first_derivative_may_keep_its_graph():
    x, positives, _ = inputs((17,), "contiguous", torch.float32)
    x.requires_grad_()
    loss = rankreg_loss(x, positives, lam=1.0)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert_equal(torch.autograd.grad(loss, x)[0], first)


def test_rank_is_not_differentiable():
    x = torch.randn(5, requires_grad=True)
    assert not rank(x).requires_grad
    assert not positive_ranks(x, x > 0).requires_grad


def test_autocast_and_half_precision():
    """Under autocast scores arrive in bfloat16: ranks are float32, the gradient bfloat16 again."""
    layer = torch.nn.Linear(8, 1)
    features, positives = torch.randn(64, 8), torch.rand(64) < 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(features).squeeze(-1)
        assert scores.dtype == torch.bfloat16
        scores.retain_grad()
        loss = rankreg_loss(scores, positives, lam=2.0)
    assert loss.dtype == torch.float32
    loss.backward()
    assert scores.grad.dtype == torch.bfloat16
    assert layer.weight.grad.abs().sum() > 0
    exact = scores.detach().float().requires_grad_()
    rankreg_loss(exact, positives, lam=2.0).backward()
    assert_equal(scores.grad, exact.grad.bfloat16())


def test_lam_as_a_tensor_is_the_same_number():
    x, positives, where = inputs((2, 3, 17), "contiguous", torch.float32)
    x.requires_grad_()
    for lam in (0.3, 5.0):
        for form in (torch.tensor(lam), torch.tensor(lam, dtype=torch.float64)):
            assert_equal(
                torch.autograd.grad(everything(x, positives, where, form), x)[0],
                torch.autograd.grad(everything(x, positives, where, lam), x)[0],
            )


def test_any_dimension_can_hold_the_lists():
    x, _, where = inputs((4, 5, 6), "contiguous", torch.float32)
    for dim in range(-3, 3):
        assert_equal(
            rank(x, dim, where=where),
            reference.rank(x.movedim(dim, -1), where=where.movedim(dim, -1)).movedim(-1, dim),
        )
        y = x.clone().requires_grad_()
        blackbox_rank(y, 1.0, dim, where=where).pow(2).sum().backward()
        z = x.movedim(dim, -1).clone().requires_grad_()
        reference.blackbox_rank(z, 1.0, where=where.movedim(dim, -1)).pow(2).sum().backward()
        assert_equal(y.grad, z.grad.movedim(-1, dim))


def test_meta_tensors_have_shapes():
    x = torch.empty(3, 7, device="meta")
    assert rank(x).shape == (3, 7)
    assert rankreg_loss(x, x > 0, lam=1.0, reduction="none").shape == (3,)
