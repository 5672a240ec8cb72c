"""The table of section 3, row by row: the stated result, or an error that names what is wrong."""

import gc
import resource

import pytest
import torch
from samples import FLOATS, assert_equal

from rankreg_ext import blackbox_rank, positive_ranks, rank, rankreg_loss

X = torch.tensor([[0.3, 0.1, 0.7], [0.2, 0.9, 0.4]])
P = torch.tensor([[True, False, False], [False, False, True]])
NAN, INF = float("nan"), float("inf")
FUNCTIONS = {
    "rank": lambda x=X, where=None, **k: rank(x, where=where, **k),
    "blackbox_rank": lambda x=X, lam=1.0, where=None, **k: blackbox_rank(x, lam, where=where, **k),
    "positive_ranks": lambda x=X, lam=1.0, where=None, positives=P: positive_ranks(
        x, positives, lam=lam, where=where
    ),
    "rankreg_loss": lambda x=X, lam=1.0, where=None, positives=P, **k: rankreg_loss(
        x, positives, lam=lam, where=where, **k
    ),
}
BAD = [
    # function, arguments, error, what the message must name
    *((f, {"x": [1.0, 2.0]}, TypeError, ("torch.Tensor", "list")) for f in FUNCTIONS),
    *(
        (f, {"x": torch.tensor(1.0)}, ValueError, ("at least 1 dimension", "0-dim"))
        for f in FUNCTIONS
    ),
    *((f, {"x": X.to(torch.complex64)}, TypeError, ("dtype", "complex64")) for f in FUNCTIONS),
    *((f, {"x": X.to_sparse()}, TypeError, ("dense", "sparse")) for f in FUNCTIONS),
    *((f, {"where": X}, TypeError, ("where", "torch.bool", "float32")) for f in FUNCTIONS),
    *((f, {"where": [True]}, TypeError, ("where", "torch.Tensor", "list")) for f in FUNCTIONS),
    *((f, {"where": P[:, :2]}, ValueError, ("where", "(2, 3)", "(2, 2)")) for f in FUNCTIONS),
    *((f, {"where": P[None]}, ValueError, ("where", "(2, 3)", "(1, 2, 3)")) for f in FUNCTIONS),
    *((f, {"where": P.to("meta")}, ValueError, ("where", "cpu", "meta")) for f in FUNCTIONS),
    *(
        (f, {"lam": lam}, ValueError, ("lam", "positive", repr(float(lam))))
        for f in FUNCTIONS
        if f != "rank"
        for lam in (0, 0.0, -1.0, NAN, INF)
    ),
    *(
        (f, {"lam": lam}, TypeError, ("lam", "float", name))
        for f in FUNCTIONS
        if f != "rank"
        for lam, name in (("1", "str"), (True, "bool"), (1j, "complex"))
    ),
    *(
        (f, {"lam": lam}, ValueError, ("lam", "0-dim", text))
        for f in FUNCTIONS
        if f != "rank"
        for lam, text in ((torch.ones(1), "(1,)"), (torch.tensor(1), "int64"))
    ),
    *(
        (f, {"lam": lam}, ValueError, ("lam", "float32", str(lam)))
        for f in FUNCTIONS
        if f != "rank"
        for lam in (1e-50, 1e50)
    ),
    *(
        (f, {"lam": torch.tensor(1.0, device="meta")}, ValueError, ("lam", "cpu", "meta"))
        for f in FUNCTIONS
        if f != "rank"
    ),
    *(
        (f, {"x": X.to(torch.int64)}, TypeError, ("dtype", "float32", "int64"))
        for f in FUNCTIONS
        if f != "rank"
    ),
    *(
        (f, {"ties": "first"}, ValueError, ("ties", "'min'", "'ordinal'", "'first'"))
        for f in ("rank", "blackbox_rank")
    ),
    *((f, {"dim": 2}, ValueError, ("dim", "[-2, 1]", "2")) for f in ("rank", "blackbox_rank")),
    *((f, {"dim": "0"}, TypeError, ("dim", "int", "str")) for f in ("rank", "blackbox_rank")),
    *(
        (f, {"positives": P.long()}, TypeError, ("positives", "torch.bool", "int64", "labels == 1"))
        for f in ("positive_ranks", "rankreg_loss")
    ),
    *(
        (f, {"positives": P[:, :2]}, ValueError, ("positives", "scores", "(2, 3)", "(2, 2)"))
        for f in ("positive_ranks", "rankreg_loss")
    ),
    ("rankreg_loss", {"power": 0}, ValueError, ("power", "at least 1", "0")),
    ("rankreg_loss", {"power": 1.5}, TypeError, ("power", "integer", "1.5")),
    ("rankreg_loss", {"normalize": "n"}, ValueError, ("normalize", "'length'", "'n'")),
    ("rankreg_loss", {"reduction": "avg"}, ValueError, ("reduction", "'mean'", "'avg'")),
]


@pytest.mark.parametrize(
    ("function", "arguments", "error", "named"),
    BAD,
    ids=[f"{f}-{next(iter(a))}-{i}" for i, (f, a, _, _) in enumerate(BAD)],
)
def test_error_names_function_argument_requirement_and_value(function, arguments, error, named):
    with pytest.raises(error) as caught:
        FUNCTIONS[function](**arguments)
    message = str(caught.value)
    assert message.startswith(f"{function}: ")
    for text in named:
        assert text in message


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_inf_and_signed_zero(dtype):
    x = torch.tensor([NAN, INF, -0.0, 0.0, -INF], dtype=dtype)
    ranks = rank(x)
    assert_equal(ranks, torch.tensor([NAN, 1, 2, 2, 4], dtype=ranks.dtype))


def test_a_loss_over_a_nan_rank_is_nan():
    x = torch.tensor([NAN, 1.0, 2.0], requires_grad=True)
    loss = rankreg_loss(x, torch.tensor([True, False, True]), lam=1.0)
    assert loss.isnan()
    loss.backward()
    assert x.grad[0].isnan()
    # a NaN among the negatives is absent from the ranks, and its own gradient says so
    x = torch.tensor([NAN, 1.0, 2.0], requires_grad=True)
    loss = rankreg_loss(x, torch.tensor([False, True, False]), lam=1.0, normalize="none")
    assert loss == 4
    loss.backward()
    assert x.grad[0].isnan()
    assert x.grad[1:].isfinite().all()


@pytest.mark.parametrize("filler", [NAN, INF, 1e30])
def test_masked_items_count_for_nobody_whatever_they_hold(filler):
    x = torch.tensor([0.3, filler, 0.7, filler], requires_grad=True)
    where = torch.tensor([True, False, True, False])
    positives = torch.tensor([True, True, False, False])
    assert rank(x, where=where).tolist() == [2, 0, 1, 0]
    assert positive_ranks(x, positives, where=where).tolist() == [2, 0, 0, 0]
    loss = rankreg_loss(x, positives, lam=1.0, where=where)
    assert loss == (2 / 2) ** 2
    loss.backward()
    assert x.grad[1] == x.grad[3] == 0
    assert x.grad[0] == -0.5
    (grad,) = torch.autograd.grad(
        blackbox_rank(x, 1.0, where=where), x, torch.tensor([1.0, NAN, 0, INF])
    )
    assert grad.tolist() == [-1, 0, 1, 0]


@pytest.mark.parametrize(
    ("shape", "mask"),
    [((0,), None), ((3, 0), None), ((0, 4), None), ((2, 4), "nothing"), ((2, 4), "no positive")],
    ids=str,
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_is_valid_and_a_differentiable_zero(shape, mask, reduction):
    x = torch.randn(shape, requires_grad=True)
    positives = torch.full(shape, mask != "no positive")
    where = torch.zeros(shape, dtype=torch.bool) if mask == "nothing" else None
    loss = rankreg_loss(x, positives, lam=1.0, where=where, reduction=reduction)
    assert_equal(loss.detach(), torch.zeros(shape[:-1] if reduction == "none" else ()))
    loss.sum().backward()
    assert_equal(x.grad, torch.zeros(shape))
    if mask != "no positive":
        x.grad = None
        ranks = blackbox_rank(x, 1.0, where=where)
        assert_equal(ranks.detach(), torch.zeros(shape))
        ranks.sum().backward()
        assert_equal(x.grad, torch.zeros(shape))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_nothing_is_modified_in_place(function):
    x, where, positives = X.clone().requires_grad_(), P | (X > 0.3), P.clone()
    copies = x.detach().clone(), where.clone()
    out = function(x, where=where)
    if out.requires_grad:
        out.sum().backward()
    assert torch.equal(x.detach(), copies[0])
    assert torch.equal(where, copies[1])
    assert torch.equal(positives, P)
    assert x._version == 0


def test_memory_stays_constant_over_ten_thousand_calls():
    x, positives = torch.randn(4, 64), torch.rand(4, 64) < 0.1

    def step():
        y = x.detach().requires_grad_()
        loss = rankreg_loss(y, positives, lam=1.0) + blackbox_rank(y, 1.0).mean()
        (loss + positive_ranks(y, positives, lam=1.0).sum()).backward()

    for _ in range(500):
        step()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    objects = len(gc.get_objects())
    for _ in range(10_000):
        step()
    gc.collect()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB
    assert len(gc.get_objects()) - objects < 100
