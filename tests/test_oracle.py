"""The oracle itself: against loops over the formulas, SciPy, and what theory says of it."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from samples import INTEGERS, assert_equal, cases

from rankreg_ext import reference
from rankreg_ext.reference import TIES

CASES = settings(max_examples=2000)
SLIDE = torch.tensor([0.3, 0.1, 0.7, 0.6, 0.8])


def literal_rank(a, where, descending, ties):
    """Loops over the definition: 1 + #{k : a_k > a_i}, and what the other rules say."""
    above = (lambda p, q: p > q) if descending else (lambda p, q: p < q)
    out = []
    for i, mine in enumerate(a):
        if not where[i]:
            out.append(0.0)
        elif math.isnan(mine):
            out.append(math.nan)
        else:
            others = [(k, v) for k, v in enumerate(a) if where[k] and not math.isnan(v)]
            better = [v for _, v in others if above(v, mine)]
            equal = [k for k, v in others if v == mine]
            first, last = len(better) + 1, len(better) + len(equal)
            out.append(
                float(
                    {
                        "min": first,
                        "max": last,
                        "average": (first + last) / 2,
                        "dense": len(set(better)) + 1,
                        "ordinal": first + equal.index(i),
                    }[ties]
                )
            )
    return out


def literal(x, where, descending=True, ties="min"):
    n = x.shape[-1]
    where = torch.ones_like(x, dtype=torch.bool) if where is None else where
    rows = zip(x.reshape(-1, n).tolist(), where.reshape(-1, n).tolist(), strict=True)
    ranks = [literal_rank(a, w, descending, ties) for a, w in rows]
    return torch.tensor(ranks, dtype=reference.rank_dtype(x.dtype, n)).reshape(x.shape)


def test_slide_example():
    assert reference.rank(SLIDE).tolist() == [4, 5, 2, 3, 1]


def short(case):
    """The case as one short list: loops over the definition are quadratic."""
    return dataclasses.replace(case, n=case.n % 24 + 1, batch=())


@CASES
@given(case=cases())
def test_rank_is_its_definition(case):
    case = short(case)
    x, where = case.scores(), case.where()
    actual = reference.rank(x, descending=case.descending, ties=case.ties, where=where)
    assert_equal(actual, literal(x, where, case.descending, case.ties))


@CASES
@given(case=cases())
@np.errstate(all="ignore")  # infinities and overflow are among the inputs
def test_blackbox_gradient_is_its_definition(case):
    """(rk(a + lam g) - rk(a)) / lam in float32 arithmetic (float64 for float64 scores)."""
    case = short(case)
    x, where, upstream = case.scores().detach(), case.where(), case.upstream()
    args = {"descending": case.descending, "ties": case.ties, "where": where}
    ranks = reference.blackbox_rank(x.requires_grad_(), case.lam, **args)
    (actual,) = torch.autograd.grad(ranks, x, upstream)

    x = x.detach()
    real = np.float64 if case.dtype == torch.float64 else np.float32
    lam, a = real(case.lam), x.to(reference.compute_dtype(case.dtype)).numpy()
    step = lam * upstream.numpy().astype(real)
    moved = torch.from_numpy(a + step if case.descending else a - step)
    delta = literal(moved, where, case.descending, case.ties)
    delta = delta - literal(x, where, case.descending, case.ties)
    assert_equal(actual, torch.from_numpy(delta.numpy().astype(real) / lam).to(case.dtype))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("descending", [True, False])
def test_rank_of_integers(dtype, descending):
    x = torch.tensor([0, 1, 1, 0, 1] if dtype == torch.bool else [7, 0, 100, 7, 3]).to(dtype)
    if dtype == torch.uint64:  # above the range of int64
        x = torch.from_numpy(x.numpy() | np.uint64(1 << 63))
    for ties in TIES:
        expected = literal_rank(x.numpy().tolist(), [True] * 5, descending, ties)
        assert reference.rank(x, descending=descending, ties=ties).tolist() == expected


@settings(max_examples=300)
@given(case=cases())
def test_scipy_agrees(case):
    x = case.scores().double()
    x = torch.where(x.isnan(), 0, x)
    for ties in TIES:
        expected = scipy.stats.rankdata(x.numpy(), method=ties, axis=-1)
        actual = reference.rank(x, descending=False, ties=ties)
        assert_equal(actual, torch.from_numpy(expected.astype(np.float64)).reshape(x.shape))


def literal_positive_gradient(a, g, lam, positives):
    """The closed form for g = 0 outside the positives: two loops of comparisons, no sort."""
    n, inside = len(a), [i for i in range(len(a)) if positives[i]]
    f = np.float32
    moved = {i: f(a[i] + f(f(lam) * g[i])) for i in inside}
    out = []
    for j in range(n):
        if j in moved:
            rank = 1 + sum(a[k] > a[j] for k in range(n))
            new = 1 + sum(a[k] > moved[j] for k in range(n) if k not in moved)
            new += sum(moved[k] > moved[j] for k in inside)
        else:
            rank = sum(a[i] > a[j] for i in inside)
            new = sum(moved[i] > a[j] for i in inside)
        out.append(f(f(new - rank) / f(lam)))
    return out


@CASES
@given(case=cases((torch.float32,)))
def test_closed_form_of_rare_positives_is_the_blackbox_gradient(case):
    """Also for negative and zero g, ties and infinities."""
    n = max(case.n % 40, 1)
    g = case.generator()
    x = torch.randn(n, generator=g).mul(4).round().div(4)
    x[torch.rand(n, generator=g) < 0.1] = math.inf
    positives = torch.rand(n, generator=g) < 0.3
    upstream = torch.randn(n, generator=g) * (torch.rand(n, generator=g) < 0.7)
    x.requires_grad_()
    lam = min(max(case.lam, 1e-3), 1e4)
    reference.positive_ranks(x, positives, lam=lam).backward(upstream)
    a, upstream = x.detach().numpy(), upstream.numpy()
    expected = literal_positive_gradient(a, upstream, lam, positives.tolist())
    assert x.grad.tolist() == [float(v) for v in expected]


@settings(max_examples=300)
@given(case=cases((torch.float64,)))
def test_gradients_of_a_list_without_ties_sum_to_zero(case):
    n = max(case.n, 1)
    g = case.generator()
    x = torch.randperm(n, generator=g).double().requires_grad_()
    # Steps that are no multiple of 1/2 keep the moved scores apart.
    upstream = torch.rand(n, generator=g, dtype=torch.float64) * 3
    for ties in TIES:
        (grad,) = torch.autograd.grad(reference.blackbox_rank(x, 1.0, ties=ties), x, upstream)
        assert grad.sum() == 0


def literal_rankreg(scores, positives, lam, power, z, upstream):
    """R and upstream * dR/da of one list, from the formulas, in the scores' precision."""
    real = type(scores[0])
    inside = [i for i, positive in enumerate(positives) if positive]
    if not inside:
        return 0.0, [0.0] * len(scores)
    ranks = lambda a: [1 + sum(b > c for b in a) for c in a]  # noqa: E731
    r = ranks(scores)
    value = sum(r[i] ** power for i in inside) / (z**power * len(inside))
    moved = list(scores)
    for i in inside:
        h = power * r[i] ** (power - 1) / (z ** (power - 1) * len(inside))
        moved[i] = scores[i] + real(lam) * real(h)
    divisor = real(z * float(real(lam)))
    steps = [real(new - old) / divisor for new, old in zip(ranks(moved), r, strict=True)]
    return value, [float(real(upstream) * step) for step in steps]


@CASES
@given(case=cases((torch.float32, torch.float64)))
@np.errstate(all="ignore")
def test_rankreg_loss_is_its_definition(case):
    n = case.n % 24 + 1
    g = case.generator()
    x = torch.randn(n, generator=g, dtype=case.dtype)
    if case.values == "tied":
        x = x.mul(2).round().div(2)
    positives = torch.rand(n, generator=g) < case.share
    loss = reference.rankreg_loss(
        x.requires_grad_(), positives, lam=case.lam, power=case.power, normalize=case.normalize
    )
    (grad,) = torch.autograd.grad(loss * 3, x)
    z = n if case.normalize == "length" else 1
    a = list(x.detach().numpy())
    value, expected = literal_rankreg(a, positives.tolist(), case.lam, case.power, z, 3)
    assert loss == torch.tensor(value, dtype=case.dtype)
    assert grad.tolist() == expected


def test_lam_means_the_same_whatever_follows_the_loss():
    """The decoupled gradient scales with the loss; through blackbox_rank a scale leaks into lam."""
    x = torch.randn(50, requires_grad=True)
    positives = torch.rand(50) < 0.2
    loss = reference.rankreg_loss(x, positives, lam=1.0)
    (plain,) = torch.autograd.grad(loss, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 65536, x)
    assert torch.equal(scaled, plain * 65536)

    def chain(scale):
        ranks = reference.blackbox_rank(x, 1.0) / 50
        return torch.autograd.grad(scale * (ranks[positives] ** 2).mean(), x)[0] / scale

    assert not torch.allclose(chain(65536.0), chain(1.0))


def test_a_reduction_over_lists_counts_those_with_a_positive():
    x, positives = torch.randn(4, 9), torch.zeros(4, 9, dtype=torch.bool)
    positives[1, 2] = positives[3, 5] = positives[3, 6] = True
    each = reference.rankreg_loss(x, positives, lam=1.0, reduction="none")
    assert each[0] == each[2] == 0
    mean = reference.rankreg_loss(x, positives, lam=1.0, reduction="mean")
    torch.testing.assert_close(mean, each[[1, 3]].mean())
    torch.testing.assert_close(
        reference.rankreg_loss(x, positives, lam=1.0, reduction="sum"), each.sum()
    )


def test_average_ties_are_exact_beyond_half_of_the_float32_range():
    """Half-integers above 2^23 need float64; integers only above 2^24."""
    assert reference.rank_dtype(torch.float32, 2**23, "average") == torch.float32
    assert reference.rank_dtype(torch.float32, 2**23 + 1, "average") == torch.float64
    assert reference.rank_dtype(torch.float32, 2**24, "min") == torch.float32
    assert reference.rank_dtype(torch.float32, 2**24 + 1, "min") == torch.float64


def test_metrics_of_lists_without_items_or_without_lists():
    for shape in ((3, 0), (0, 4), (0,)):
        x = torch.randn(shape)
        for metric in (reference.roc_auc, reference.fpr_at_tpr):
            value = metric(x, x > 0)
            assert value.shape == shape[:-1]
            assert value.dtype == torch.float64
            assert value.isnan().all()
