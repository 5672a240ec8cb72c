"""The set of ops in Triton as a citizen of torch, in the interpreter.

What is traced from it is in tests/test_triton_traced.py, without the interpreter.
"""

import pytest
import torch
from rankreg_ext.triton_kernels import KERNELS, host
from samples import assert_equal

import rankreg_ext
from rankreg_ext import _backend, _ops, blackbox_rank, positive_ranks, rank, rankreg_loss
from rankreg_ext.reference import NO_SECOND_DERIVATIVE

ops = torch.ops.rankreg_ext_triton
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that were launched."""
    made, launch = [], host.launch

    def recorded(kernel, *args, **options):
        made.append(kernel.__name__)
        launch(kernel, *args, **options)

    monkeypatch.setattr(host, "launch", recorded)
    return made


def inputs(shape=(2, 3, 17)):
    x = torch.randn(shape)
    return x, torch.rand(shape) < 0.2, torch.rand(shape) < 0.8


def everything(x, positives, where, lam=2.0):
    ranks = blackbox_rank(x, lam, ties="average") * rank(x, where=where)
    some = positive_ranks(x, positives, lam=lam, where=where)
    return ranks.sum() + (some**2).sum() + rankreg_loss(x, positives, lam=lam)


def test_interpreter_makes_triton_usable_on_the_cpu():
    assert _backend.usable("triton") is None
    assert "cpu" in _backend.DEVICES["triton"]
    assert "  triton     usable" in rankreg_ext.show_config().splitlines()


def test_every_op_has_a_kernel():
    assert set(KERNELS) == set(_ops.NAMES)


def test_opcheck():
    x, positives, where = inputs()
    leaf = x.clone().requires_grad_()
    lam_tensor = torch.tensor(1.5)

    def check(op, args):
        torch.library.opcheck(op.default, args, test_utils=CHECKS)

    check(ops.rank, (x, True, 0, None))
    check(ops.rank, (x, False, 2, where))
    check(ops.blackbox_rank, (leaf, 1.5, None, True, 1, where))
    ranks = ops.rank(x, True, 0, where)
    check(ops.blackbox_rank_backward, (ranks, x, ranks, 1.5, None, True, 0, where))
    check(ops.positive_ranks, (leaf, positives, 1.0, lam_tensor, where))
    some = ops.positive_ranks(x, positives, 1.0, None, None)
    check(ops.positive_ranks_backward, (some, x, positives, some, 1.5, None, None))
    args = (positives, 1.5, lam_tensor, where)
    check(ops.hinge_violations, (leaf, *args))
    check(ops.hinge_violations_backward, (some.clone().requires_grad_(), x, *args))
    for reduction in range(len(_ops.REDUCTION)):
        args = (positives, 1.5, None, 2, 1, where)
        check(ops.rankreg_loss, (leaf, *args, reduction))
        loss, state = ops.rankreg_loss(x, *args, reduction)
        check(ops.rankreg_loss_backward, (torch.ones_like(loss), x, positives, state, *args[1:]))


def test_backward_is_in_triton_wherever_it_is_called(launches):
    """The choice is made forward: autograd may run when the block has long been left."""
    x, positives, where = inputs()
    x.requires_grad_()
    with rankreg_ext.use_backend("triton"):
        out = everything(x, positives, where)
    forward = len(launches)
    assert forward >= 4
    (gradient,) = torch.autograd.grad(out, x)
    assert len(launches) - forward == 3
    assert_equal(gradient, torch.autograd.grad(everything(x, positives, where), x)[0])
    assert len(launches) - forward == 3  # by nobody else


def test_vmap_and_grad():
    x, positives, where = inputs((3, 4, 17))
    with rankreg_ext.use_backend("triton"):
        mapped = torch.func.vmap(torch.func.grad(everything))(x, positives, where)
    leaf = x.clone().requires_grad_()
    total = sum(everything(*row) for row in zip(leaf, positives, where, strict=True))
    assert_equal(mapped, torch.autograd.grad(total, leaf)[0])


def test_second_derivative_raises():
    x, positives, where = inputs((17,))
    with rankreg_ext.use_backend("triton"):
        leaf = x.clone().requires_grad_()
        out = everything(leaf, positives, where)
        (gradient,) = torch.autograd.grad(out, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=NO_SECOND_DERIVATIVE):
            torch.autograd.grad(gradient.sum(), leaf)


def test_lists_that_are_too_long_take_plain_torch(launches, monkeypatch):
    monkeypatch.setattr("rankreg_ext._triton.LONGEST", 16)
    with rankreg_ext.use_backend("triton"):
        assert_equal(rank(torch.tensor([0.5] * 16 + [1.0])), torch.tensor([2.0] * 16 + [1.0]))
        assert not launches
        rank(torch.tensor([0.5] * 16))
        assert launches
