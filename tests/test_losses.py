"""Losses as arithmetic: hand-computed values, literal double loops, and what must not change."""

import copy
import io
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from rankreg_ext import losses, rankreg_loss
from rankreg_ext.losses import (
    ALM,
    BCE,
    LDAM,
    AsymmetricFocal,
    AsymmetricMargin,
    ClassBalancedBCE,
    NormalizedLinear,
    OneVersusRest,
    SymmetricFocal,
    SymmetricMargin,
    WeightedBCE,
    effective_number_weights,
    hinge_violations,
    ldam_loss,
)
from rankreg_ext.nn import RankReg, ScoreMemory

NAN, INF = float("nan"), float("inf")


def tensor(*values, **kwargs):
    return torch.tensor(values, **kwargs)


def flags(text: str) -> torch.Tensor:
    """'+--' is one positive and two negatives."""
    return torch.tensor([c == "+" for c in text], dtype=torch.bool)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# --- binary losses: values ------------------------------------------------------------------------

# Loss, and its value for a target of 1 and of 0 by the formula, with e inside the logarithms.
BINARY = {
    "BCE": (
        lambda e, **k: BCE(**k),
        lambda z, e: -math.log(sigmoid(z)),
        lambda z, e: -math.log(1 - sigmoid(z)),
    ),
    "SymmetricMargin": (
        lambda e, **k: SymmetricMargin(2.0, eps=e, **k),
        lambda z, e: -math.log(sigmoid(z - 2) + e),
        lambda z, e: -math.log(1 - sigmoid(z + 2) + e),
    ),
    "AsymmetricMargin": (
        lambda e, **k: AsymmetricMargin(2.0, eps=e, **k),
        lambda z, e: -math.log(sigmoid(z - 2) + e),
        lambda z, e: -math.log(1 - sigmoid(z) + e),
    ),
    "SymmetricFocal": (
        lambda e, **k: SymmetricFocal(0.5, eps=e, **k),
        lambda z, e: -math.sqrt(1 - sigmoid(z)) * math.log(sigmoid(z) + e),
        lambda z, e: -math.sqrt(sigmoid(z)) * math.log(1 - sigmoid(z) + e),
    ),
    "AsymmetricFocal": (
        lambda e, **k: AsymmetricFocal(2.0, eps=e, **k),
        lambda z, e: -math.log(sigmoid(z) + e),
        lambda z, e: -(sigmoid(z) ** 2) * math.log(1 - sigmoid(z) + e),
    ),
    "WeightedBCE": (
        lambda e, **k: WeightedBCE(100, 2 / 3, **k),
        lambda z, e: -200 / 3 * math.log(sigmoid(z)),
        lambda z, e: -math.log(1 - sigmoid(z)),
    ),
    "ClassBalancedBCE": (
        lambda e, **k: ClassBalancedBCE((4410, 44), 0.99, **k),
        lambda z, e: -0.01 / (1 - 0.99**44) * math.log(sigmoid(z)),
        lambda z, e: -0.01 / (1 - 0.99**4410) * math.log(1 - sigmoid(z)),
    ),
}
MARGIN_AND_FOCAL = [name for name in BINARY if "Margin" in name or "Focal" in name]
LOGITS = (-3.0, -0.25, 0.0, 0.5, 2.0)


def make(name, eps=0.0, **options) -> nn.Module:
    return BINARY[name][0](eps, **options)


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.125])
@pytest.mark.parametrize("name", BINARY)
def test_binary_values(name, eps):
    _, positive, negative = BINARY[name]
    logits = tensor(*LOGITS, *LOGITS, dtype=torch.float64)
    targets = torch.arange(10) < 5
    expected = [positive(z, eps) for z in LOGITS] + [negative(z, eps) for z in LOGITS]
    for dtype in (torch.bool, torch.int64, torch.uint8, torch.float32, torch.float64):
        value = make(name, eps, reduction="none")(logits, targets.to(dtype))
        assert value.dtype == torch.float64
        assert value.tolist() == pytest.approx(expected, rel=1e-12)
    value = make(name, eps, reduction="sum")(logits, targets).item()
    assert value == pytest.approx(math.fsum(expected), rel=1e-12)
    assert make(name, eps)(logits, targets).item() == pytest.approx(value / 10, rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("name", BINARY)
def test_binary_gradients(name, eps):
    logits = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    targets = tensor([True, False], [False, True])
    for reduction in ("mean", "sum", "none"):
        loss = make(name, eps, reduction=reduction)
        assert gradcheck(lambda z, loss=loss: loss(z, targets), logits)
    assert gradgradcheck(lambda z: loss(z, targets), logits)


def test_cross_entropy_is_that_of_torch():
    logits, targets, weight = torch.randn(50), torch.rand(50), torch.rand(50)  # soft targets too
    for reduction in ("mean", "sum", "none"):
        expected = F.binary_cross_entropy_with_logits(
            logits, targets, weight=weight, reduction=reduction
        )
        value = BCE(reduction=reduction)(logits, targets, weight)
        torch.testing.assert_close(value, expected)
        expected = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=tensor(50.0), reduction=reduction
        )
        value = WeightedBCE(100, 0.5, reduction=reduction)(logits, targets)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", BINARY)
def test_soft_targets_mix(name):
    loss = make(name, reduction="none")
    logits = torch.randn(9, dtype=torch.float64)
    one, zero = loss(logits, torch.ones(9)), loss(logits, torch.zeros(9))
    torch.testing.assert_close(loss(logits, torch.full((9,), 0.25)), one / 4 + zero * 3 / 4)


@pytest.mark.parametrize("name", MARGIN_AND_FOCAL)
def test_without_margin_or_focus_they_are_cross_entropy(name):
    logits, targets = torch.randn(20), torch.rand(20) < 0.5
    plain = getattr(losses, name)(0.0)
    torch.testing.assert_close(plain(logits, targets), BCE()(logits, targets))


def test_defaults_are_the_published_choices():
    assert "margin=0.5, eps=0.0, reduction='mean'" in repr(SymmetricMargin())
    assert "margin=0.5" in repr(AsymmetricMargin())
    assert "gamma=0.5" in repr(SymmetricFocal())
    assert "gamma=1.0" in repr(AsymmetricFocal())
    assert f"ratio=100, c={1 / 3}" in repr(WeightedBCE(100))
    assert "counts=(3, 1), beta=0.99, rescale=False" in repr(ClassBalancedBCE([3, 1]))
    assert repr(BCE(reduction="sum")) == "BCE(reduction='sum')"


# --- binary losses: extremes, shapes, reductions --------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("name", BINARY)
def test_extreme_logits(name, eps, dtype):
    logits = tensor(1e4, -1e4, 1e4, -1e4, dtype=dtype).requires_grad_()
    value = make(name, eps, reduction="none")(logits, tensor(1, 0, 0, 1))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert value.isfinite().all() and gradient.isfinite().all()
    right, wrong = value[:2].tolist(), value[2:].tolist()
    assert right == pytest.approx([0, 0], abs=1.1e-4 if eps else 0)
    assert gradient[:2].tolist() == [0, 0]
    # Weights and slopes: what a wrong item gains by a step of the logit.
    slopes = {"WeightedBCE": (1, 200 / 3), "ClassBalancedBCE": (0.01, 0.01 / (1 - 0.99**44))}
    down, up = slopes.get(name, (1, 1))
    if eps and name in MARGIN_AND_FOCAL:
        assert wrong == pytest.approx([-math.log(eps)] * 2)
        assert gradient[2:].tolist() == [0, 0]
    else:
        at = abs(logits[2].item())
        assert wrong == pytest.approx([down * at, up * at], rel=3e-4)
        assert gradient[2:].tolist() == pytest.approx([down, -up], rel=1e-2)


@pytest.mark.parametrize("name", MARGIN_AND_FOCAL)
def test_eps_bounds_the_loss_and_takes_the_gradient(name):
    logits = tensor(-30.0, requires_grad=True)
    for eps, bound in ((1e-4, -math.log(1e-4)), (0.0, None)):
        value = make(name, eps)(logits, tensor(True))
        (gradient,) = torch.autograd.grad(value, logits)
        if bound is None:
            assert value > 29 and gradient.item() == pytest.approx(-1, abs=1e-6)
        else:
            assert value.item() == pytest.approx(bound) and -1e-8 < gradient.item() < 0
    value = make(name, 1e-4)(tensor(60.0), tensor(True))
    assert -1.1e-4 < value <= 0


@pytest.mark.parametrize("name", BINARY)
def test_nan_is_not_hidden(name):
    value = make(name, reduction="none")(tensor(NAN, 1.0), tensor(1, 0))
    assert value.isnan().tolist() == [True, False]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3, 2)])
@pytest.mark.parametrize("name", BINARY)
def test_any_shape(name, shape):
    logits, targets = torch.randn(shape), torch.randint(2, shape)
    value = make(name, reduction="none")(logits, targets)
    assert value.shape == shape
    flat = make(name, reduction="none")(logits.flatten(), targets.flatten())
    torch.testing.assert_close(value.flatten(), flat)
    assert make(name)(logits, targets).shape == make(name, reduction="sum")(logits, targets).shape


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", BINARY)
def test_nothing_gives_a_differentiable_zero(name, reduction):
    logits = torch.empty(0, 3, dtype=torch.float16, requires_grad=True)
    value = make(name, reduction=reduction)(logits, torch.empty(0, 3))
    assert value.shape == () and value.item() == 0
    value.backward()
    assert logits.grad.shape == (0, 3)
    assert make(name, reduction="none")(logits, torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("name", BINARY)
def test_weights(name):
    logits, targets = torch.randn(4, 3, dtype=torch.float64), torch.randint(2, (4, 3))
    plain = make(name, reduction="none")(logits, targets)
    for weight in (torch.rand(4, 3), torch.rand(3), torch.rand(4, 1), tensor(2.0)[0]):
        expected = plain * weight.double()
        assert torch.equal(make(name, reduction="none")(logits, targets, weight), expected)
        assert torch.equal(make(name, reduction="sum")(logits, targets, weight), expected.sum())
        assert torch.equal(make(name)(logits, targets, weight), expected.sum() / 12)


def test_half_precision_sums_do_not_overflow():
    logits = torch.full((1000,), -1e4, dtype=torch.float16)
    value = WeightedBCE(100, 1.0, reduction="sum")(logits, torch.ones(1000))
    assert value.item() == pytest.approx(1e9)


@pytest.mark.parametrize("name", BINARY)
def test_binary_compiles_and_vmaps(name):
    torch._dynamo.reset()
    loss = make(name, 1e-4)
    logits, targets = torch.randn(6, 5), torch.randint(2, (6, 5))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, targets), loss(logits, targets))
    values = torch.func.vmap(loss)(logits, targets)
    torch.testing.assert_close(values.mean(), loss(logits, targets))


# --- effective numbers ----------------------------------------------------------------------------


def test_effective_number_weights():
    weights = effective_number_weights([1, 2, 3], beta=0.5, rescale=False)
    assert weights.tolist() == pytest.approx([1, 0.5 / 0.75, 0.5 / 0.875])
    weights = effective_number_weights([5000, 50], beta=0.9999)
    raw = [1e-4 / (1 - 0.9999**n) for n in (5000, 50)]
    assert weights.tolist() == pytest.approx([2 * w / sum(raw) for w in raw], rel=1e-6)
    assert effective_number_weights([7, 1], beta=0.0).tolist() == [1, 1]
    # Towards 1: one over the count, where 1 - beta^n has no digits left.
    weights = effective_number_weights([4, 1], beta=math.nextafter(1, 0), rescale=False)
    assert weights.tolist() == pytest.approx([0.25, 1])


def test_class_balanced_rescaled():
    logits, targets = torch.randn(8), torch.randint(2, (8,))
    plain = ClassBalancedBCE((100, 3), 0.9)
    rescaled = ClassBalancedBCE((100, 3), 0.9, rescale=True)
    w = [0.1 / (1 - 0.9**n) for n in (100, 3)]
    factor = rescaled(logits, targets) / plain(logits, targets)
    assert factor.item() == pytest.approx(2 / sum(w), rel=1e-5)
    w0, w1 = effective_number_weights((100, 3), 0.9).tolist()
    assert rescaled(tensor(0.0), tensor(1)).item() == pytest.approx(w1 * math.log(2), rel=1e-6)
    assert rescaled(tensor(0.0), tensor(0)).item() == pytest.approx(w0 * math.log(2), rel=1e-6)


# --- LDAM -----------------------------------------------------------------------------------------


def test_ldam_by_hand():
    loss = LDAM([10_000, 625, 16], reduction="none")  # fourth roots 10, 5, 2
    assert loss.margins.tolist() == pytest.approx([0.5 * 2 / 10, 0.5 * 2 / 5, 0.5])
    cosines = [[0.5, 0.25, -1.0], [0.125, 1.0, 0.75]]
    expected = []
    for x, y, margin in zip(cosines, (0, 2), (0.1, 0.5), strict=True):
        z = [30 * (v - margin * (c == y)) for c, v in enumerate(x)]
        expected.append(math.log(math.fsum(map(math.exp, z))) - z[y])
    value = loss(torch.tensor(cosines, dtype=torch.float64), tensor(0, 2))
    assert value.dtype == torch.float64
    assert value.tolist() == pytest.approx(expected, rel=1e-6)  # the margins are float32
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        value = loss(torch.tensor(cosines, dtype=dtype), tensor(0, 2))
        assert value.dtype == torch.float32 and value.tolist() == pytest.approx(expected, rel=1e-5)


def test_ldam_options():
    loss = LDAM([16, 1], max_margin=0.25, scale=10.0)
    assert loss.margins.tolist() == [0.125, 0.25]
    x = tensor([0.25, 0.5], dtype=torch.float64)
    assert loss(x, tensor(True)).item() == pytest.approx(math.log(2))
    assert loss(x, tensor(False)).item() == pytest.approx(math.log(1 + math.exp(10 * 0.375)))
    assert "counts=(16, 1), max_margin=0.25, scale=10.0, reduction='mean'" in repr(loss)


def test_ldam_class_weights():
    counts = [50, 5]
    cosines, targets = torch.rand(6, 2), tensor(0, 1, 0, 0, 1, 0)
    plain = LDAM(counts, reduction="none")(cosines, targets)
    loss = LDAM(counts)
    torch.testing.assert_close(loss(cosines, targets), plain.mean())
    loss.class_weights = tensor(0.5, 3.0)  # deferred: set in a later epoch
    weights = tensor(0.5, 3.0, 0.5, 0.5, 3.0, 0.5)
    torch.testing.assert_close(loss(cosines, targets), (weights * plain).sum() / 8)
    torch.testing.assert_close(
        loss(cosines, targets),
        F.cross_entropy(
            30 * (cosines - F.one_hot(targets, 2) * loss.margins), targets, tensor(0.5, 3.0)
        ),
    )
    same = LDAM(counts, class_weights=tensor(0.5, 3.0), reduction="sum")
    torch.testing.assert_close(same(cosines, targets), (weights * plain).sum())
    assert not loss.state_dict()  # all of it follows from the arguments and the schedule
    loss.class_weights = tensor(0.0, 0.0)
    assert loss(cosines, targets).item() == 0


def test_ldam_gradient_extremes_and_nothing():
    loss = LDAM([50, 5], class_weights=tensor(0.5, 2.0)).double()
    cosines = (torch.rand(5, 2, dtype=torch.float64) * 2 - 1).requires_grad_()
    assert gradcheck(lambda x: loss(x, tensor(1, 0, 0, 1, 0)), cosines)
    far = tensor([1e4, -1e4], dtype=torch.float16).requires_grad_()
    value = LDAM([50, 5])(far, tensor(1))
    value.backward()
    assert value.item() == pytest.approx(6e5, rel=1e-2) and far.grad.tolist() == [[30, -30]]
    for weights in (None, tensor(1.0, 2.0)):
        empty = torch.empty(0, 2, requires_grad=True)
        value = LDAM([50, 5], class_weights=weights)(empty, torch.empty(0, dtype=torch.int64))
        value.backward()
        assert value.item() == 0 and empty.grad.shape == (0, 2)


def test_ldam_scores_are_the_cosines_of_a_class():
    cosines = torch.randn(4, 3)
    assert torch.equal(LDAM([3, 2, 1]).scores(cosines), cosines[:, 1])
    assert torch.equal(LDAM([3, 2, 1]).scores(cosines, critical=2), cosines[:, 2])


def test_normalized_linear_gives_cosines():
    head = NormalizedLinear(2, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -5.0], [1.0, 1.0]]))
    cosines = head(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert cosines[0].tolist() == pytest.approx([0.6, -0.8, 1.4 / math.sqrt(2)], rel=1e-6)
    assert cosines[1].tolist() == [0, 0, 0]
    assert NormalizedLinear(7)(torch.randn(4, 5, 7)).shape == (4, 5, 2)
    assert repr(head) == "NormalizedLinear(in_features=2, out_features=3)"


def test_normalized_linear_ignores_lengths_and_has_gradients():
    head = NormalizedLinear(4).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(head(x * 1e3), head(x))
    assert gradcheck(head, x)
    zero = torch.zeros(1, 4, requires_grad=True)
    NormalizedLinear(4)(zero).sum().backward()
    assert zero.grad.abs().max() < 4  # not the reciprocal of something tiny


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_normalized_linear_is_not_rounded_to_half(dtype):
    head, x = NormalizedLinear(16), torch.randn(64, 16).to(dtype)
    expected = head(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosines = head(x)
    assert cosines.dtype == torch.float32 and torch.equal(cosines, expected)


# --- hinge violations -----------------------------------------------------------------------------


def literal(scores, positives, delta, where, upstream):
    """One list: q and its gradient by a loop over all pairs, exactly."""
    a, u = scores.double().tolist(), upstream.double().tolist()
    count = [w and not math.isnan(x) for x, w in zip(a, where.tolist(), strict=True)]
    q, gradient = [0.0] * len(a), [Fraction(0)] * len(a)
    for j, p in enumerate(positives.tolist()):
        if not (p and count[j]):
            continue
        total = Fraction(0)
        for k, other in enumerate(positives.tolist()):
            if other or not count[k]:
                continue
            if math.isinf(a[j]) or math.isinf(a[k]):
                hinge = INF if a[k] > a[j] else 0
            else:
                hinge = max(0, Fraction(delta) - (Fraction(a[j]) - Fraction(a[k])))
            total = INF if INF in (total, hinge) else total + hinge
            if hinge > 0:
                gradient[j] -= Fraction(u[j])
                gradient[k] += Fraction(u[j])
        q[j] = float(total)
    for i, (x, p, w) in enumerate(zip(a, positives.tolist(), where.tolist(), strict=True)):
        if w and math.isnan(x):
            gradient[i] = NAN
            q[i] = NAN if p else 0.0
    return torch.tensor(q, dtype=torch.float64), torch.tensor([float(g) for g in gradient]).double()


def violations(scores, positives, delta, where=None, upstream=None):
    """Value and gradient."""
    scores = scores.detach().clone().requires_grad_()
    q = hinge_violations(scores, positives, delta, where)
    upstream = torch.ones_like(q) if upstream is None else upstream.to(q.dtype)
    (gradient,) = torch.autograd.grad(q, scores, upstream)
    return q.detach(), gradient


@st.composite
def hinge_lists(draw):
    lists, n = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    kind = draw(st.sampled_from(["tied", "special", "spread", "normal"]))
    scores = torch.randn(lists, n, generator=generator)
    if kind in ("tied", "special"):
        scores = (scores * 4).round() / 4
    if kind == "special":
        values = tensor(INF, -INF, NAN, 0.0, -0.0, 1.0)
        pick = values[torch.randint(6, (lists, n), generator=generator)]
        scores = torch.where(torch.rand(lists, n, generator=generator) < 0.3, pick, scores)
    if kind == "spread":
        scores = scores * 10 ** torch.randint(-3, 4, (lists, n), generator=generator)
    upstream = torch.randint(-8, 9, (lists, n), generator=generator) / 4
    return {
        "scores": scores.to(dtype),
        "positives": torch.rand(lists, n, generator=generator) < draw(st.sampled_from([0, 0.3, 1])),
        "delta": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 7.0])),
        "where": torch.rand(lists, n, generator=generator) < draw(st.sampled_from([0.0, 0.7, 1.0])),
        "upstream": upstream,
    }


@settings(max_examples=400)
@given(hinge_lists())
def test_hinge_violations_equal_a_loop_over_all_pairs(case):
    q, gradient = violations(**case)
    dtype = case["scores"].dtype
    assert q.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    epsilon = torch.finfo(q.dtype).eps
    for i in range(len(q)):
        row = {k: v if k == "delta" else v[i] for k, v in case.items()}
        expected, expected_gradient = literal(**row)
        # float64 scores less delta are rounded themselves; all else is rounded once.
        slack = 4 if q.dtype == torch.float64 else 1
        torch.testing.assert_close(
            q[i].double(),
            expected,
            rtol=slack * epsilon,
            atol=1e-11 if q.dtype == torch.float64 else 0,
            equal_nan=True,
        )
        torch.testing.assert_close(
            gradient[i], expected_gradient.to(dtype), rtol=0, atol=0, equal_nan=True
        )


def test_hinge_violations_by_hand():
    scores = tensor(1.0, 0.0, 2.0, 0.75, 1.0, 0.5)
    q, gradient = violations(scores, flags("++----"), 0.5, upstream=tensor(1, 10, 0, 0, 0, 0))
    # Of 1: 2 by 1.5, 0.75 by 0.25, 1 by 0.5, and 0.5 at the corner. Of 0: by 2.5, 1.25, 1.5, 1.
    assert q.tolist() == [2.25, 6.25, 0, 0, 0, 0]
    assert gradient.tolist() == [-3, -40, 11, 11, 11, 10]


def test_a_corner_has_no_gradient():
    q, gradient = violations(tensor(0.5, 0.0, 0.0), flags("+--"), 0.5)
    assert q.tolist() == [0, 0, 0] and gradient.tolist() == [0, 0, 0]
    above = math.nextafter(0.0, 1)
    q, gradient = violations(tensor(0.5, above, 0.0, dtype=torch.float64), flags("+--"), 0.5)
    assert gradient.tolist() == [-1, 1, 0] and q[0] == above


def test_ties_with_delta_zero():
    # Equal scores violate a margin of 0 by 0: the corner again.
    q, gradient = violations(tensor(1.0, 1.0, 1.0, 2.0), flags("+---"), 0.0)
    assert q.tolist() == [1, 0, 0, 0] and gradient.tolist() == [-1, 0, 0, 1]


def test_infinities_and_nan():
    q, gradient = violations(
        tensor(INF, -INF, 0.0, NAN, INF, -INF, NAN, 0.0), flags("++++----"), 1.0
    )
    assert torch.equal(q[:3], tensor(0.0, INF, INF)) and q[3].isnan()
    assert gradient[:3].tolist() == [0, -2, -2]  # inf and 0 above -inf; inf and a tie by delta at 0
    assert gradient[3].isnan() and gradient[6].isnan()
    assert gradient[4:6].tolist() == [2, 0] and gradient[7].item() == 2
    assert q[4:].tolist() == [0, 0, 0, 0]


def test_masked_items_hold_anything():
    scores, where = tensor(NAN, 0.0, INF, 0.5), flags("-+-+")
    q, gradient = violations(scores, flags("++--"), 0.5, where)
    assert q.tolist() == [0, 1, 0, 0] and gradient.tolist() == [0, -1, 0, 1]


def test_large_offsets_take_no_digits():
    # A sum of scores less a multiple of the threshold would round these differences away.
    scores = torch.tensor([2.0**40, *[2.0**40 + 2.0**-10] * 3], dtype=torch.float64)
    q, _ = violations(scores, flags("+---"), 0.0)
    assert q[0].item() == 3 * 2.0**-10
    q, _ = violations(tensor(0.0, 1e30, 1.0), flags("+--"), 0.0)
    assert q[0].item() == pytest.approx(1e30)
    q, _ = violations(tensor(0.5, -1e30, 1.0), flags("+--"), 0.0)
    assert q[0].item() == 0.5


def test_long_lists_against_pairs_in_blocks():
    n = 5_000
    scores, positives = torch.randn(n), torch.rand(n) < 0.3
    q, gradient = violations(scores, positives, 0.25)
    p, k = scores[positives].double(), scores[~positives].double()
    hinge = [(0.25 - (block[:, None] - k)).clamp(min=0) for block in p.split(500)]
    expected = torch.cat([h.sum(1) for h in hinge])
    torch.testing.assert_close(q[positives].double(), expected, rtol=2**-23, atol=0)
    assert torch.equal(gradient[positives], -torch.cat([(h > 0).sum(1) for h in hinge]).float())
    assert torch.equal(gradient[~positives], sum((h > 0).sum(0) for h in hinge).float())


def test_no_pairs_are_stored():
    n = 200_000  # 1e10 pairs: 10 GB as bool
    scores = torch.randn(n, requires_grad=True)
    q = hinge_violations(scores, torch.arange(n) % 2 == 0, 0.25)
    q.sum().backward()
    assert scores.grad.sum().abs() < 1e-6 * scores.grad.abs().sum()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (2, 0, 3)])
def test_empty_lists(shape):
    scores = torch.empty(shape, dtype=torch.float16, requires_grad=True)
    q = hinge_violations(scores, torch.empty(shape, dtype=torch.bool), 0.5)
    assert q.shape == shape and q.dtype == torch.float32
    q.sum().backward()
    assert scores.grad.shape == shape


def test_layouts_and_broadcasting():
    scores, row = torch.randn(4, 3, 5), flags("+-+--")
    where = torch.rand(3, 5) < 0.8
    expected = violations(scores, row.expand(4, 3, 5), 0.5, where.expand(4, 3, 5))
    for layout in (
        scores.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        torch.stack([scores, scores], -1)[..., 0],
    ):
        for a, b in zip(violations(layout, row, 0.5, where), expected, strict=True):
            assert torch.equal(a, b)
    one = torch.randn(5).expand(3, 5)
    q, _ = violations(one, row, 0.5)
    assert torch.equal(q[0], q[2])


def away_from_corners(n, delta, seed=0):
    """Scores whose differences are at least 0.01 away from 0 and from delta."""
    places = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).double()
    return (places * 0.3 + 0.1 * delta).requires_grad_()


def test_gradcheck():
    scores = away_from_corners(14, 1.0).view(2, 7)
    positives = flags("+--+-+-")
    where = flags("++++++-")
    assert gradcheck(lambda s: hinge_violations(s, positives, 1.0, where), scores)


def test_second_derivatives():
    # Piecewise linear: 0 of itself, and right through functions of it, to any order.
    scores = away_from_corners(7, 1.0)
    positives = flags("+--+-+-")
    (first,) = torch.autograd.grad(
        hinge_violations(scores, positives, 1.0).sum(), scores, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum() + scores.sum() * 0, scores)
    assert first.any() and torch.equal(second, torch.zeros(7).double())

    def cubic(s):
        return hinge_violations(s, positives, 1.0) ** 3

    assert gradgradcheck(cubic, scores)
    assert gradcheck(lambda s: torch.func.grad(lambda t: cubic(t).sum())(s), scores)

    def gradient_norm(s):
        return torch.autograd.grad(cubic(s).sum(), s, create_graph=True)[0].square().sum()

    assert gradgradcheck(gradient_norm, scores)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_hinge_violations_compile(backend):
    torch._dynamo.reset()
    compiled = torch.compile(hinge_violations, fullgraph=True, backend=backend)
    for n in (12, 33) if backend == "aot_eager" else (12,):
        scores, positives, where = torch.randn(2, n), torch.rand(2, n) < 0.4, torch.rand(n) < 0.9
        expected = violations(scores, positives, 0.5, where)
        x = scores.clone().requires_grad_()
        q = compiled(x, positives, 0.5, where)
        assert torch.equal(q, expected[0])
        assert torch.equal(torch.autograd.grad(q.sum(), x)[0], expected[1])


def test_hinge_violations_under_transforms_and_autocast():
    scores, positives = torch.randn(3, 9), torch.rand(3, 9) < 0.4
    expected, gradient = violations(scores, positives, 0.5)

    def total(s, p):
        return hinge_violations(s, p, 0.5).sum()

    assert torch.equal(torch.func.grad(total)(scores, positives), gradient)
    assert torch.equal(torch.func.vmap(torch.func.grad(total))(scores, positives), gradient)
    q = torch.func.vmap(lambda s: hinge_violations(s, positives[0], 0.5))(scores)
    assert torch.equal(q[0], expected[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hinge_violations(scores, positives, 0.5), expected)
        assert torch.equal(hinge_violations(scores, positives, tensor(0.5)[0]), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_hinge_violations_and_alm_on_cuda_without_waiting():
    scores, positives = torch.randn(3, 500), torch.rand(3, 500) < 0.1
    indices = torch.arange(500)
    expected = violations(scores, positives, 0.5)
    term, on_cuda = ALM(500, mu=0.1), ALM(500, mu=0.1).cuda()
    value = term(scores, positives, indices)
    scores, positives, indices = scores.cuda(), positives.cuda(), indices.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = violations(scores, positives, 0.5)
        value_on_cuda = on_cuda(scores, positives, indices)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(actual[0].cpu(), expected[0])
    assert torch.equal(actual[1].cpu(), expected[1])
    torch.testing.assert_close(value_on_cuda.cpu(), value)
    torch.testing.assert_close(on_cuda.multipliers.cpu(), term.multipliers)


# --- ALM ------------------------------------------------------------------------------------------


def run(term, *args, **kwargs):
    """Value and gradient at the first argument."""
    x = args[0].detach().clone().requires_grad_()
    value = term(x, *args[1:], **kwargs)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


SCORES, POSITIVES, INDICES = tensor(0.0, 1.0, 0.5, -1.0), flags("++--"), tensor(5, 3, 0, 1)
# With delta 1: q = 1.5 of the first, 0.5 of the second; |P||N| = 4.


@pytest.mark.parametrize("power", [1, 2])
def test_alm_by_hand_and_in_order(power):
    term = ALM(6, delta=1.0, mu=0.5, power=power)
    value, gradient = run(term, SCORES, POSITIVES, INDICES)
    # The first time the multipliers are 0; they are updated after the term.
    assert value.item() == 0.25 * (1.5 ** (2 * power) + 0.5 ** (2 * power)) / 4
    u = [0.25 * 2 * power * q ** (2 * power - 1) / 4 for q in (1.5, 0.5)]
    assert gradient.tolist() == [-u[0], -u[1], sum(u), 0]
    assert term.multipliers.tolist() == [0, 0, 0, 0.25, 0, 0.75]
    value, gradient = run(term, SCORES, POSITIVES, INDICES)
    quadratic = 0.25 * (1.5 ** (2 * power) + 0.5 ** (2 * power))
    assert value.item() == (quadratic + 0.75 * 1.5 + 0.25 * 0.5) / 4
    assert gradient.tolist() == [-u[0] - 0.75 / 4, -u[1] - 0.25 / 4, sum(u) + 1 / 4, 0]
    assert term.multipliers.tolist() == [0, 0, 0, 0.5, 0, 1.5]


def test_alm_multipliers_are_those_of_the_samples():
    term = ALM(6, delta=1.0, mu=0.5)
    term(SCORES, POSITIVES, INDICES)
    # Another batch and order: sample 3 with multiplier 0.25, sample 4 with 0.
    value = term(tensor(0.25, 0.0, 0.0), flags("-++"), tensor(2, 4, 3))
    assert value.item() == (0.25 * 1.25**2 * 2 + 0.25 * 1.25) / 2
    assert term.multipliers.tolist() == [0, 0, 0, 0.25 + 0.625, 0.625, 0.75]


def test_alm_sample_twice_in_a_batch_adds_up():
    term = ALM(2, delta=1.0, mu=1.0)
    term(tensor(0.0, 0.5, 0.0), flags("++-"), tensor(1, 1, 0))
    assert term.multipliers.tolist() == [0, 1.5]


def test_alm_in_eval_mode_learns_nothing():
    term = ALM(6, delta=1.0, mu=0.5)
    term(SCORES, POSITIVES, INDICES)
    before = copy.deepcopy(term.state_dict())
    term.eval()
    first, second = (term(SCORES, POSITIVES, INDICES) for _ in range(2))
    assert first == second == (0.25 * 2.5 + 0.75 * 1.5 + 0.25 * 0.5) / 4
    assert all(torch.equal(before[k], v) for k, v in term.state_dict().items())
    assert not any(v.requires_grad for v in term.state_dict().values())


@pytest.mark.parametrize("text", ["", "++", "--"])
def test_alm_without_pairs_gives_a_differentiable_zero(text):
    term = ALM(4)
    for reduction in ("mean", "sum", "none"):
        term.reduction = reduction
        n = len(text)
        value, gradient = run(term, torch.randn(n), flags(text), torch.arange(n))
        assert value.shape == () and value.item() == 0 and torch.equal(gradient, torch.zeros(n))
    assert not term.multipliers.any()


def test_alm_lists_and_reductions():
    scores = torch.stack([SCORES, torch.zeros(4), torch.ones(4), SCORES * 2])
    positives = torch.stack([flags(t) for t in ("++--", "----", "++++", "--+-")])
    each = [
        ALM(6, delta=1.0, mu=0.5)(s, p, INDICES) for s, p in zip(scores, positives, strict=True)
    ]
    make = lambda reduction: ALM(6, delta=1.0, mu=0.5, reduction=reduction)  # noqa: E731
    assert torch.equal(make("none")(scores, positives, INDICES), torch.stack(each))
    assert make("sum")(scores, positives, INDICES) == sum(each)
    assert make("mean")(scores, positives, INDICES) == sum(each) / 2  # two have both classes
    assert each[0] > 0 and each[1] == each[2] == 0 and each[3] > 0


def test_alm_masks():
    term = ALM(6, delta=1.0, mu=0.5)
    scores = tensor(NAN, 0.0, 1.0, 0.5, INF, -1.0)
    where, indices = flags("-+++-+"), tensor(99, 5, 3, 0, -1, 1)
    value, gradient = run(term, scores, flags("+++---"), indices, where)
    assert value.item() == 0.25 * 2.5 / 4  # as the batch without them
    assert gradient[0] == gradient[4] == 0 and gradient.isfinite().all()
    assert term.multipliers.tolist() == [0, 0, 0, 0.25, 0, 0.75]


def test_alm_shows_nan_and_does_not_remember_it():
    term = ALM(6, delta=1.0, mu=0.5)
    assert term(tensor(NAN, 0.0, 0.0), flags("++-"), tensor(0, 1, 2)).isnan()
    assert term.multipliers.tolist() == [0, 0.5, 0, 0, 0, 0]
    term(tensor(0.0, INF), flags("+-"), tensor(3, 4))
    assert term.multipliers.isfinite().all()
    # A NaN negative is absent, from |N| as well.
    assert ALM(6, delta=1.0, mu=0.5)(tensor(0.0, 0.0, NAN), flags("+--"), INDICES[:3]) == 0.25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_alm_dtypes(dtype):
    term = ALM(6, delta=1.0, mu=0.5)
    value, gradient = run(term, SCORES.to(dtype), POSITIVES, INDICES.int())
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype and value.item() == 0.25 * 2.5 / 4
    assert term.multipliers.dtype == torch.float32


def test_alm_gradcheck():
    scores = away_from_corners(10, 1.0)
    term = ALM(10, delta=1.0, mu=0.5).eval()
    term.multipliers.uniform_()
    positives, indices = torch.arange(10) % 3 == 0, torch.randperm(10)
    assert gradcheck(lambda s: term(s, positives, indices), scores)
    assert gradgradcheck(lambda s: term(s, positives, indices), scores)


def schedule(mu, aucs, **options):
    term, out = ALM(1, mu=mu, **options), []
    for auc in aucs:
        term.end_epoch(auc)
        out.append(term.mu.item() / term.start)
    return out


@pytest.mark.parametrize(
    ("mu", "aucs", "factors"),
    [
        # Epoch 2 always raises; later ones after a fall of more than 0.05.
        (1e-6, [0.9, 0.8, 0.9, 0.9, 0.84, 0.84, 0.80, 0.74], [1, 1, 2, 2, 4, 4, 4, 8]),
        # A fall of 0.0625 twice in a row counts twice, against the epoch before.
        (1e-6, [0.9, 0.9, 0.75, 0.6875, 0.625], [1, 1, 2, 4, 8]),
        # The cap: rho^5 below 1e-3, rho^3 from there on.
        (1e-4, [0.9, 0.9, *[0.8, 0.7] * 8], [1, 1, 2, 4, 4, 8, 8, 16, 16, 32, 32, *[32] * 7]),
        (1e-3, [0.9, 0.9, *[0.8, 0.7] * 4], [1, 1, 2, 4, 4, 8, 8, 8, 8, 8]),
        # A perfect AUC stops it for good, but only from epoch 2 on.
        (1e-6, [1.0, 1.0, 0.5, 0.25, 1.0, 0.5, 0.25], [1, 1, 2, 4, 4, 4, 4]),
        (1e-6, [0.5, 0.5, 1.0, 0.5, 0.25], [1] * 5),
    ],
)
def test_mu_schedule(mu, aucs, factors):
    assert schedule(mu, aucs) == pytest.approx(factors, rel=1e-12)


def test_mu_schedule_with_another_rho_ends_at_the_cap():
    falling = [0.9, 0.9, *[0.8, 0.7] * 8]
    assert schedule(1e-2, falling, rho=3.0)[-1] == pytest.approx(27)
    assert schedule(1e-5, falling, rho=1.5)[-1] == pytest.approx(1.5**5)
    term = ALM(1, mu=1e-2)
    assert term.cap == 8e-2
    for auc in falling:
        term.end_epoch(torch.tensor(auc))
    assert not term.rising and term.mu == 8e-2 and term.epoch == len(falling)


def test_alm_uses_the_raised_mu():
    term = ALM(6, delta=1.0, mu=0.5)
    for auc in (0.5, 0.5, 0.5):
        term.end_epoch(auc)
    assert term(SCORES, POSITIVES, INDICES).item() == 0.5 * 2.5 / 4
    assert term.multipliers[5] == 1.5


def test_alm_resumes_from_its_state():
    aucs = [0.9, 0.8, 0.9, 0.84, 0.8, 0.74, 1.0, 0.5, 0.4]
    for stop in range(len(aucs)):
        straight, first = (ALM(6, delta=1.0, mu=1e-3) for _ in range(2))
        for auc in aucs[:stop]:
            for term in (straight, first):
                term(SCORES, POSITIVES, INDICES)
                term.end_epoch(auc)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = ALM(6, delta=1.0, mu=1e-3)
        second.load_state_dict(torch.load(file, weights_only=True))
        for auc in aucs[stop:]:
            values = [term(SCORES, POSITIVES, INDICES) for term in (straight, second)]
            assert values[0] == values[1]
            for term in (straight, second):
                term.end_epoch(auc)
        for key, value in straight.state_dict().items():
            assert torch.equal(value, second.state_dict()[key]), key
    straight.reset()
    for key, value in ALM(6, delta=1.0, mu=1e-3).state_dict().items():
        assert torch.equal(value, straight.state_dict()[key]), key


def test_alm_compiles_and_a_new_mu_compiles_nothing_anew():
    torch._dynamo.reset()
    term = ALM(6, delta=1.0, mu=0.5)
    same = copy.deepcopy(term)
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(same, fullgraph=True, backend=compilations)
    counts = []
    for auc in (0.5, 0.5, 0.5, 0.25):
        for _ in range(2):
            for a, b in zip(
                run(compiled, SCORES, POSITIVES, INDICES),
                run(term, SCORES, POSITIVES, INDICES),
                strict=True,
            ):
                assert torch.equal(a, b)
            counts.append(compilations.frame_count)
        term.end_epoch(auc)
        same.end_epoch(auc)
    assert torch.equal(term.multipliers, same.multipliers) and term.mu == 2.0
    assert counts[0] > 0 and set(counts) == set(counts[:1])


def test_alm_under_autocast():
    layer, x, positives = nn.Linear(4, 1), torch.randn(32, 4), torch.rand(32) < 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ALM(32, mu=0.1)(layer(x).squeeze(1), positives, torch.arange(32))
    assert value.dtype == torch.float32
    value.backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


def test_alm_repr():
    text = repr(ALM(7, delta=0.5, mu=1e-3, rho=3, power=2, reduction="sum"))
    assert text == "ALM(samples=7, delta=0.5, mu=0.001, rho=3.0, power=2, reduction='sum')"


# --- several classes ------------------------------------------------------------------------------


def multi_class(n=40, classes=5):
    """Class 4 is absent."""
    return torch.randn(n, classes), torch.randint(classes - 1, (n,))


def test_one_versus_rest_averages_the_classes_present():
    logits, targets = multi_class()
    term = OneVersusRest(RankReg(alpha=0.5, lam=2.0), classes=[3, 4, 0])
    value, gradient = run(term, logits, targets)
    x = logits.clone().requires_grad_()
    each = [rankreg_loss(x[:, c], targets == c, lam=2.0) for c in (3, 0)]
    expected = 0.5 * (each[0] + each[1]) / 2
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])
    assert gradient[:, [1, 2, 4]].count_nonzero() == 0 and gradient[:, [0, 3]].any()


def test_one_versus_rest_by_hand():
    logits = torch.tensor([[0.0, 0.1, 9.0], [0.0, 0.5, 8.0], [0.0, 0.2, 7.0], [0.0, 0.0, 6.0]])
    term = OneVersusRest(RankReg(alpha=1.0, power=1, normalize="none"), classes=[1, 2])
    assert term(logits, tensor(1, 0, 0, 2)).item() == (3 + 4) / 2
    assert term(logits, tensor(1, 0, 0, 0)).item() == 3
    assert term(logits, tensor(1, 0, 0, 2), where=flags("+-++")).item() == (2 + 3) / 2
    each = OneVersusRest(
        RankReg(alpha=1.0, power=1, normalize="none", reduction="none"), classes=[2, 1]
    )
    assert each(logits, tensor(1, 0, 0, 2)).tolist() == [4, 3]


def test_one_versus_rest_calls_its_term_once():
    calls = []

    def term(scores, positives, *extra, where):
        calls.append((scores, positives, extra, where))
        return scores.sum()

    logits, targets = multi_class()
    OneVersusRest(term, [2, 0])(logits, targets, tensor(7), where=flags("+") == 1)
    ((scores, positives, extra, where),) = calls
    assert torch.equal(scores, logits.T[[2, 0]])
    assert torch.equal(positives, torch.stack([targets == 2, targets == 0]))
    assert extra[0].item() == 7 and where.all()


def test_one_versus_rest_without_a_critical_class_is_a_differentiable_zero():
    for term, extra in ((RankReg(), ()), (ALM(40), (torch.arange(40),))):
        logits, targets = multi_class()
        value, gradient = run(OneVersusRest(term, [4]), logits, targets, *extra)
        assert value.item() == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_one_versus_rest_with_alm():
    logits, targets = multi_class()
    indices = torch.randperm(100)[:40]
    together = OneVersusRest(ALM(100, mu=0.5), [1, 4, 3])
    alone = ALM(100, mu=0.5)
    for _ in range(2):
        value, gradient = run(together, logits, targets, indices)
        x = logits.clone().requires_grad_()
        expected = sum(alone(x[:, c], targets == c, indices) for c in (1, 3)) / 2
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])
        assert torch.equal(together.term.multipliers, alone.multipliers)
    critical = (targets == 1) | (targets == 3)
    assert not together.term.multipliers[indices[~critical]].any()
    assert next(iter(together.state_dict())) == "term.multipliers"
    before = together.term.multipliers.clone()
    together.eval()(logits, targets, indices)
    assert torch.equal(together.term.multipliers, before)


def test_one_versus_rest_compiles():
    torch._dynamo.reset()
    logits, targets = multi_class()
    for term, extra in ((RankReg(), ()), (ALM(40, mu=0.5).eval(), (torch.arange(40),))):
        term = OneVersusRest(term, [1, 3])
        compiled = torch.compile(term, fullgraph=True, backend="aot_eager")
        for a, b in zip(
            run(compiled, logits, targets, *extra),
            run(term, logits, targets, *extra),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


# --- bad arguments --------------------------------------------------------------------------------

Z, Y = torch.zeros(2), torch.zeros(2)


@pytest.mark.parametrize(
    "function",
    [
        losses.bce_loss,
        losses.symmetric_margin_loss,
        losses.asymmetric_margin_loss,
        losses.symmetric_focal_loss,
        losses.asymmetric_focal_loss,
        lambda z, y, **k: losses.weighted_bce_loss(z, y, 2.0, **k),
        lambda z, y, **k: losses.class_balanced_bce_loss(z, y, (2, 1), **k),
    ],
)
@pytest.mark.parametrize(
    ("logits", "targets", "options", "error", "message"),
    [
        ([0.0], Y, {}, TypeError, "logits must be a torch.Tensor, got list"),
        (tensor(1, 0), Y, {}, TypeError, "logits must have dtype float16, .*got torch.int64"),
        (Z, [0, 1], {}, TypeError, "targets must be a torch.Tensor, got list"),
        (Z, Y.cfloat(), {}, TypeError, "targets must be bool, .*got torch.complex64"),
        (Z, torch.zeros(3), {}, ValueError, r"targets must have .* \(2,\), got \(3,\)"),
        (Z, torch.zeros(2, 1), {}, ValueError, r"targets must have .* \(2,\), got \(2, 1\)"),
        (Z, Y.to("meta"), {}, ValueError, "targets must be on the device of logits, cpu, got meta"),
        (Z, Y, {"weight": 2.0}, TypeError, "weight must be a torch.Tensor, got float"),
        (
            Z,
            Y,
            {"weight": torch.ones(3)},
            ValueError,
            r"weight must be broadcast.*got shape \(3,\)",
        ),
        (Z, Y, {"reduction": "avg"}, ValueError, "reduction must be one of .*got 'avg'"),
    ],
)
def test_bad_binary_arguments(function, logits, targets, options, error, message):
    with pytest.raises(error, match=f"^[a-z_]+_loss: {message}"):
        function(logits, targets, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BCE(reduction="avg"), ValueError, "BCE: reduction must be one of .*got 'avg'"),
        (lambda: SymmetricMargin(-1), ValueError, "SymmetricMargin: margin must be .*got -1"),
        (lambda: AsymmetricMargin(NAN), ValueError, "AsymmetricMargin: margin must be .*got nan"),
        (lambda: SymmetricMargin(eps=-1e-4), ValueError, "SymmetricMargin: eps must be .*-0.0001"),
        (lambda: SymmetricFocal(INF), ValueError, "SymmetricFocal: gamma must be .*got inf"),
        (lambda: AsymmetricFocal("2"), TypeError, "AsymmetricFocal: gamma must be .*got str"),
        (lambda: AsymmetricFocal(True), TypeError, "AsymmetricFocal: gamma must be .*got bool"),
        (lambda: WeightedBCE(-100), ValueError, "WeightedBCE: ratio must be .*got -100"),
        (lambda: WeightedBCE(100, None), TypeError, "WeightedBCE: c must be .*got None"),
        (
            lambda: ClassBalancedBCE((3, 0)),
            ValueError,
            "ClassBalancedBCE: counts must be .*at least 1, got 0 in it",
        ),
        (lambda: ClassBalancedBCE((3, 2, 1)), ValueError, "counts must have .* 2, got 3"),
        (lambda: ClassBalancedBCE((3, 2), 1.0), ValueError, "beta must be .* below 1, got 1.0"),
        (
            lambda: losses.symmetric_margin_loss(Z, Y, margin=-1.0),
            ValueError,
            "symmetric_margin_loss: margin must be .*got -1.0",
        ),
        (
            lambda: losses.asymmetric_focal_loss(Z, Y, gamma=-1.0),
            ValueError,
            "asymmetric_focal_loss: gamma must be .*got -1.0",
        ),
        (
            lambda: losses.weighted_bce_loss(Z, Y, INF),
            ValueError,
            "weighted_bce_loss: positive_weight must be .*got inf",
        ),
        (
            lambda: effective_number_weights(5),
            TypeError,
            "effective_number_weights: counts must be a sequence of integers .*got int",
        ),
        (lambda: effective_number_weights([]), ValueError, "counts must have .*1, got 0"),
        (lambda: effective_number_weights([1.5]), TypeError, "counts must be .*got 1.5 in it"),
        (lambda: effective_number_weights([2], beta=-0.1), ValueError, "beta must be .*got -0.1"),
        (lambda: LDAM([]), ValueError, "LDAM: counts must have .*got 0"),
        (lambda: LDAM([2, 1], scale=0), ValueError, "LDAM: scale must be .*above 0, got 0"),
        (lambda: LDAM([2, 1], max_margin=-1), ValueError, "LDAM: max_margin must be .*got -1"),
        (lambda: LDAM([2, 1], reduction="no"), ValueError, "LDAM: reduction must be .*got 'no'"),
        (
            lambda: LDAM([2, 1], class_weights=torch.ones(3)),
            ValueError,
            r"LDAM: class_weights must be .*\(2,\), got \(3,\)",
        ),
        (
            lambda: LDAM([2, 1], class_weights=[1.0, 2.0]),
            ValueError,
            r"LDAM: class_weights must be .*\(2,\), got list",
        ),
        (
            lambda: ldam_loss(torch.zeros(2), tensor(0, 1), Z),
            ValueError,
            r"ldam_loss: cosines must have 2 dimensions.*got shape \(2,\)",
        ),
        (
            lambda: LDAM([2, 1])(torch.zeros(2, 3), tensor(0, 1)),
            ValueError,
            r"ldam_loss: margins must have .*\(3,\), got \(2,\)",
        ),
        (
            lambda: LDAM([2, 1])(torch.zeros(2, 2), tensor(0.0, 1.0)),
            TypeError,
            "ldam_loss: targets must have a bool or integer dtype, got torch.float32",
        ),
        (
            lambda: LDAM([2, 1])(torch.zeros(2, 2), tensor(0, 1, 1)),
            ValueError,
            r"ldam_loss: targets must have .*\(2,\), got \(3,\)",
        ),
        (lambda: NormalizedLinear(0), ValueError, "NormalizedLinear: in_features must be .*got 0"),
        (
            lambda: NormalizedLinear(3)(torch.zeros(2, 4)),
            ValueError,
            r"NormalizedLinear: features must have 3 .*got shape \(2, 4\)",
        ),
        (
            lambda: hinge_violations([0.0], flags("+"), 0.5),
            TypeError,
            "hinge_violations: scores must be a torch.Tensor, got list",
        ),
        (
            lambda: hinge_violations(Z, Y, 0.5),
            TypeError,
            "hinge_violations: positives must have dtype torch.bool, got torch.float32",
        ),
        (
            lambda: hinge_violations(Z, flags("+-"), -0.5),
            ValueError,
            "hinge_violations: delta must be .*got -0.5",
        ),
        (
            lambda: hinge_violations(Z, flags("+-"), 0.5, flags("+++")),
            ValueError,
            r"hinge_violations: where must be broadcastable .*got shape \(3,\)",
        ),
        (lambda: ALM(0), ValueError, "ALM: samples must be an integer of at least 1, got 0"),
        (lambda: ALM(1, mu=0.0), ValueError, "ALM: mu must be a finite number above 0, got 0.0"),
        (lambda: ALM(1, rho=1.0), ValueError, "ALM: rho must be above 1, got 1.0"),
        (lambda: ALM(1, delta=-1.0), ValueError, "ALM: delta must be .*got -1.0"),
        (lambda: ALM(1, power=0), ValueError, "ALM: power must be .*got 0"),
        (lambda: ALM(1, reduction="avg"), ValueError, "ALM: reduction must be .*got 'avg'"),
        (lambda: ALM(1)(Z, Y, tensor(0, 0)), TypeError, "ALM: positives must have dtype"),
        (lambda: ALM(1)(Z, flags("+-"), [0, 0]), TypeError, "ALM: indices must be .*got list"),
        (
            lambda: ALM(1)(Z, flags("+-"), tensor(0.0, 0.0)),
            TypeError,
            "ALM: indices must have dtype int32 or int64, got torch.float32",
        ),
        (
            lambda: ALM(1)(Z, flags("+-"), tensor(0, 0, 0)),
            ValueError,
            r"ALM: indices must be broadcastable .*\(2,\), got shape \(3,\)",
        ),
        (
            lambda: ALM(1)(Z.to("meta"), flags("+-").to("meta"), tensor(0, 0)),
            ValueError,
            "ALM: scores must be on the device of the multipliers, cpu, got meta",
        ),
        (lambda: ALM(1).end_epoch(1.5), ValueError, "ALM.end_epoch: .*from 0 to 1, got 1.5"),
        (lambda: ALM(1).end_epoch(NAN), ValueError, "ALM.end_epoch: validation_auc .*got nan"),
        (lambda: ALM(1).end_epoch("1"), TypeError, "ALM.end_epoch: validation_auc .*got str"),
        (lambda: OneVersusRest(3, [0]), TypeError, "OneVersusRest: term must be callable, got int"),
        (
            lambda: OneVersusRest(RankReg(memory=ScoreMemory(4)), [0]),
            ValueError,
            "OneVersusRest: term must have no memory",
        ),
        (lambda: OneVersusRest(RankReg(), []), ValueError, "OneVersusRest: classes must be dist"),
        (lambda: OneVersusRest(RankReg(), [1, 1]), ValueError, r"classes must .*got \[1, 1\]"),
        (lambda: OneVersusRest(RankReg(), [-1]), ValueError, "classes must .*got -1 in it"),
        (lambda: OneVersusRest(RankReg(), 1), TypeError, "classes must be a sequence .*got int"),
        (
            lambda: OneVersusRest(RankReg(), [3])(torch.zeros(2, 3), tensor(0, 1)),
            ValueError,
            r"OneVersusRest: logits must have .*more than 3 classes, got \(2, 3\)",
        ),
        (
            lambda: OneVersusRest(RankReg(), [1])(torch.zeros(2, 3), flags("+-")),
            TypeError,
            "OneVersusRest: targets must have an integer dtype, got torch.bool",
        ),
        (
            lambda: OneVersusRest(RankReg(), [1])(torch.zeros(2, 3), tensor(0)),
            ValueError,
            r"OneVersusRest: targets must have .*\(2,\), got \(1,\)",
        ),
    ],
)
def test_bad_settings(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_index_outside_the_training_set_is_an_error():
    for index in (6, -1):
        with pytest.raises((IndexError, RuntimeError)):
            ALM(6)(tensor(0.0, 1.0), flags("+-"), tensor(index, 0))


def test_refused_batches_leave_the_multipliers():
    term = ALM(6, mu=0.5)
    with pytest.raises(ValueError, match="indices must be broadcastable"):
        term(SCORES, POSITIVES, tensor(0, 1, 2))
    assert not term.multipliers.any()
