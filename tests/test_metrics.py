"""Metrics against the oracle, literal loops over all thresholds, scipy, and hand-made examples."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_equal, cases
from scipy.stats import rankdata

from rankreg_ext import reference
from rankreg_ext.metrics import ROCAUC, FPRAtTPR, fpr_at_tpr, roc_auc, roc_curve

NAN, INF = float("nan"), float("inf")
RULES = ("threshold", "interpolate", "rounded")
TARGETS = (0.98, 0.95, 0.92, 0.9, 0.5, 0.07, 0.29, 0.01, 1.0)


def flags(text: str) -> torch.Tensor:
    """'+--' is one positive and two negatives."""
    return torch.tensor([c == "+" for c in text], dtype=torch.bool)


def descending(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores without a tie, best first, and the flags."""
    return -torch.arange(float(len(text))), flags(text)


def points(scores: torch.Tensor, positives: torch.Tensor):
    """Every point of the curve by the definition: counts at or above each distinct score."""
    out = [(INF, 0, 0)]
    a, p = scores.double().tolist(), positives.tolist()
    for t in sorted(set(a), reverse=True):
        above = [q for s, q in zip(a, p, strict=True) if s >= t]
        out.append((t, len(above) - sum(above), sum(above)))
    return out


def literal(scores, positives, tpr, rule):
    """The three rules, read off all points of the curve."""
    curve = points(scores, positives)
    n_pos, n_neg = curve[-1][2], curve[-1][1]
    rates = [(fp / n_neg, tp / n_pos) for _, fp, tp in curve]
    if rule == "threshold":
        return next(f for f, t in rates if t >= tpr)
    if rule == "interpolate":
        end = next(i for i, (_, t) in enumerate(rates) if t >= tpr)
        (f0, t0), (f1, t1) = rates[end - 1], rates[end]
        return f0 + (tpr - t0) / (t1 - t0) * (f1 - f0)
    exact = [f for f, t in rates if t == tpr]
    near = {
        d: [f for f, t in rates if np.round(t, 2) == np.round(tpr + d, 2)] for d in (0, -0.01, 0.01)
    }
    if exact:
        return exact[0]
    if near[0]:
        return near[0][0]
    if near[-0.01] and near[0.01]:
        return (near[-0.01][0] + near[0.01][0]) / 2
    return 0.0


@st.composite
def one_list(draw):
    """A list with both classes, often tied, without NaN."""
    n = draw(st.integers(2, 60))
    values = [-2.0, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 3.0, INF, -INF]
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    if draw(st.booleans()):
        scores = draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))
    else:
        scores = [float(v) for v in draw(st.permutations(range(n)))]
    positives = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    positives[0], positives[-1] = True, False
    return torch.tensor(scores, dtype=dtype), torch.tensor(positives)


# --- against the oracle ---------------------------------------------------------------------------


def nonempty(case):
    return case.n > 0 and 0 not in case.batch and case.n < 1000


@settings(max_examples=400)
@given(cases().filter(nonempty))
def test_roc_auc_equals_the_oracle(case):
    scores, positives, where = case.scores(), case.positives(), case.where()
    value = roc_auc(scores, positives, where=where)
    assert value.shape == scores.shape[:-1] and value.dtype == torch.float64
    assert_equal(value, reference.roc_auc(scores, positives, where=where))


@settings(max_examples=400)
@given(cases().filter(nonempty), st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3))
def test_fpr_at_tpr_equals_the_oracle(case, targets):
    scores, positives, where = case.scores(), case.positives(), case.where()
    values = fpr_at_tpr(scores, positives, targets, where=where)
    assert values.shape == (*scores.shape[:-1], len(targets)) and values.dtype == torch.float64
    for i, tpr in enumerate(targets):
        expected = reference.fpr_at_tpr(scores, positives, tpr, where=where)
        assert_equal(values[..., i], expected)
        assert_equal(fpr_at_tpr(scores, positives, tpr, where=where), expected)


# --- against the definitions ----------------------------------------------------------------------


@settings(max_examples=400)
@given(one_list(), st.sampled_from(TARGETS), st.sampled_from(RULES))
def test_rules_equal_a_loop_over_all_thresholds(scores_and_positives, tpr, rule):
    scores, positives = scores_and_positives
    value = fpr_at_tpr(scores, positives, tpr, rule=rule)
    assert value.shape == ()
    assert value.item() == literal(scores, positives, tpr, rule)


@settings(max_examples=100)
@given(st.integers(1, 120), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_rounded_rule_with_many_positives(n_pos, hundredths, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n_pos + 40, generator=generator)
    positives = torch.arange(n_pos + 40) < n_pos
    tpr = hundredths / 100
    value = fpr_at_tpr(scores, positives, tpr, rule="rounded").item()
    assert value == literal(scores, positives, tpr, "rounded")


@settings(max_examples=200)
@given(one_list())
def test_roc_auc_equals_the_rank_sum(scores_and_positives):
    scores, positives = scores_and_positives
    ranks = rankdata(scores.double().numpy(), method="average")
    n_pos, n_neg = int(positives.sum()), int((~positives).sum())
    doubled = round(2 * ranks[positives.numpy()].sum()) - n_pos * (n_pos + 1)
    assert roc_auc(scores, positives).item() == doubled / (2 * n_pos * n_neg)


@settings(max_examples=200)
@given(one_list())
def test_roc_curve_has_every_threshold(scores_and_positives):
    scores, positives = scores_and_positives
    fpr, tpr, thresholds = roc_curve(scores, positives)
    assert fpr.dtype == tpr.dtype == torch.float64 and thresholds.dtype == scores.dtype
    expected = points(scores, positives)
    assert thresholds.double().tolist() == [t for t, _, _ in expected]
    assert fpr.tolist() == [fp / expected[-1][1] for _, fp, _ in expected]
    assert tpr.tolist() == [tp / expected[-1][2] for _, _, tp in expected]
    area = torch.trapezoid(tpr, fpr)
    torch.testing.assert_close(area, roc_auc(scores, positives), rtol=1e-13, atol=1e-13)


@settings(max_examples=100)
@given(one_list(), st.sampled_from(TARGETS), st.sampled_from(RULES))
def test_masked_items_count_for_nothing(scores_and_positives, tpr, rule):
    scores, positives = scores_and_positives
    n = len(scores)
    generator = torch.Generator().manual_seed(n)
    place = torch.randperm(2 * n, generator=generator)[:n].sort().values
    wide = torch.full((2 * n,), NAN, dtype=scores.dtype).scatter(0, place, scores)
    flags = (torch.arange(2 * n) % 2 == 0).scatter(0, place, positives)
    where = torch.zeros(2 * n, dtype=torch.bool).scatter(0, place, True)
    assert_equal(roc_auc(wide, flags, where=where), roc_auc(scores, positives))
    assert_equal(
        fpr_at_tpr(wide, flags, tpr, rule=rule, where=where),
        fpr_at_tpr(scores, positives, tpr, rule=rule),
    )


def test_masks_broadcast_over_the_lists():
    scores, row = torch.randn(3, 2, 20), torch.arange(20) % 3 == 0
    where = torch.arange(20) < 15
    for metric in (roc_auc, fpr_at_tpr):
        values = metric(scores, row, where=where)
        assert values.shape == (3, 2)
        for i in range(3):
            for j in range(2):
                assert values[i, j] == metric(scores[i, j, :15], row[:15])


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wins", "pairs"), [("+-", 1, 1), ("-+", 0, 1), ("++--", 4, 4), ("+-+--", 5, 6)]
)
def test_roc_auc_counts_wins(text, wins, pairs):
    assert roc_auc(*descending(text)).item() == wins / pairs


def test_roc_auc_of_ties():
    assert roc_auc(torch.zeros(5), flags("++---")).item() == 0.5
    assert roc_auc(torch.tensor([0.0, -0.0]), flags("+-")).item() == 0.5
    assert roc_auc(torch.tensor([INF, INF, -INF]), flags("+--")).item() == 0.75


@pytest.mark.parametrize(
    ("text", "tpr", "negatives_above"),
    [
        ("+-+-+-+-", 0.25, 0),
        ("+-+-+-+-", 0.26, 1),
        ("+-+-+-+-", 0.5, 1),
        ("+-+-+-+-", 0.75, 2),
        ("+-+-+-+-", 0.76, 3),
        ("+-+-+-+-", 1.0, 3),
        ("----+", 0.98, 4),
        ("+----", 0.98, 0),
    ],
)
def test_threshold_rule(text, tpr, negatives_above):
    scores, positives = descending(text)
    expected = negatives_above / text.count("-")
    assert fpr_at_tpr(scores, positives, tpr).item() == expected
    assert fpr_at_tpr(scores, positives, tpr, rule="interpolate").item() == expected


@pytest.mark.parametrize(("n", "k"), [(100, 7), (100, 14), (100, 28), (100, 29), (50, 49)])
def test_a_rate_that_k_positives_meet_needs_no_more(n, k):
    # ceil(0.07 * 100) is 8 in floating point, and a negative waits behind the k-th positive.
    scores, positives = descending("+" * k + "-" + "+" * (n - k) + "-")
    assert fpr_at_tpr(scores, positives, k / n).item() == 0
    assert fpr_at_tpr(scores, positives, math.nextafter(k / n, 1)).item() == 0.5
    assert fpr_at_tpr(scores, positives, math.nextafter(k / n, 0)).item() == 0


@pytest.mark.parametrize(("n", "k"), [(3, 1), (7, 3), (11, 5), (15, 11)])
def test_a_rate_just_above_k_positives_needs_one_more(n, k):
    tpr = math.nextafter(k / n, 1)
    assert math.ceil(tpr * n) == k  # the product rounds down to k
    scores, positives = descending("+" * k + "-" + "+" * (n - k) + "-")
    assert fpr_at_tpr(scores, positives, tpr).item() == 0.5


def test_interpolation_halves_a_tie():
    # (0, 0) -> (1/2, 1) -> (1, 1): at 0.8 the line is at 0.4; a threshold takes the tie as a whole.
    scores, positives = torch.tensor([1.0, 1.0, 1.0, 0.0]), flags("++--")
    assert fpr_at_tpr(scores, positives, 0.8).item() == 0.5
    assert fpr_at_tpr(scores, positives, 0.8, rule="interpolate").item() == pytest.approx(0.4)


def test_rounded_rule():
    def rounded(text, tpr):
        return fpr_at_tpr(*descending(text), tpr, rule="rounded").item()

    assert rounded("-+-+-", 0.5) == 1 / 3  # an exact hit
    # Rates of 1/3, 2/3, 1: 0.33 and 0.67 by rounding; 0.34 has a lower neighbour and no upper one.
    assert rounded("-+-+-+-", 0.33) == 1 / 4
    assert rounded("-+-+-+-", 0.67) == 2 / 4
    assert rounded("-+-+-+-", 0.34) == 0.0
    # 40 positives: 0.97 or 0.98 (38/40 = 0.95, 39/40 = 0.975, which rounds to even: 0.98).
    assert rounded("+" * 38 + "-+-+-", 0.98) == 1 / 3
    # 50 positives: rates of even hundredths, 0.97 lies between 0.96 and 0.98.
    assert rounded("+" * 48 + "-+-+-", 0.97) == (0 + 1 / 3) / 2
    # (0, 0) is the lower neighbour of 0.01, here beside 1/50.
    assert rounded("-" + "+" * 50 + "-", 0.01) == (0 + 1 / 2) / 2


def test_roc_curve_by_hand():
    fpr, tpr, thresholds = roc_curve(torch.tensor([0.1, 0.8, 0.4, 0.4, -0.0, 0.0]), flags("-+-+-+"))
    assert thresholds.tolist() == [INF, *torch.tensor([0.8, 0.4, 0.1, 0.0]).tolist()]
    assert not thresholds.signbit().any()  # -0.0 and 0.0 are one threshold, 0.0
    assert fpr.tolist() == [0, 0, 1 / 3, 2 / 3, 1]
    assert tpr.tolist() == [0, 1 / 3, 2 / 3, 2 / 3, 1]


def test_roc_curve_without_a_class_or_an_item():
    fpr, tpr, _ = roc_curve(torch.tensor([1.0, 0.0]), flags("++"))
    assert fpr.isnan().all() and tpr.tolist() == [0, 0.5, 1]
    fpr, tpr, _ = roc_curve(torch.tensor([1.0, 0.0]), flags("--"))
    assert tpr.isnan().all() and fpr.tolist() == [0, 0.5, 1]
    assert [t.shape for t in roc_curve(torch.empty(0), flags(""))] == [(1,)] * 3


# --- undefined and extreme ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([1.0, 2.0], "++"),
        ([1.0, 2.0], "--"),
        ([], ""),
        ([1.0, NAN, 2.0], "+--"),
        ([1.0, NAN, 2.0], "++-"),
        ([NAN, NAN], "+-"),
    ],
)
def test_undefined_is_nan(scores, text, rule):
    scores, positives = torch.tensor(scores), flags(text)
    assert roc_auc(scores, positives).isnan()
    assert fpr_at_tpr(scores, positives, 0.5, rule=rule).isnan()
    assert fpr_at_tpr(scores, positives, (0.5, 1.0), rule=rule).isnan().tolist() == [True, True]
    # Beside a list that has a value.
    if len(text):
        both = torch.stack([scores, torch.arange(float(len(text)))])
        masks = torch.stack([positives, torch.arange(len(text)) == 0])
        assert roc_auc(both, masks).isnan().tolist() == [True, False]
        assert fpr_at_tpr(both, masks, 0.5, rule=rule).isnan().tolist() == [True, False]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (0, 0), (2, 0, 4)])
def test_empty(shape):
    scores = torch.empty(shape)
    positives = scores > 0
    assert roc_auc(scores, positives).shape == shape[:-1]
    assert roc_auc(scores, positives).isnan().all()
    for rule in RULES:
        assert fpr_at_tpr(scores, positives, rule=rule).shape == shape[:-1]
        assert fpr_at_tpr(scores, positives, (0.5, 0.9), rule=rule).shape == (*shape[:-1], 2)
        assert fpr_at_tpr(scores, positives, (0.5, 0.9), rule=rule).isnan().all()


def test_more_pairs_than_32_bits_hold():
    n = 300_001
    scores = torch.arange(n) % 1009 / 64
    positives = torch.arange(n) % 3 == 0
    ranks = rankdata(scores.numpy(), method="average")[positives.numpy()]
    n_pos = int(positives.sum())
    doubled = sum(map(int, 2 * ranks)) - n_pos * (n_pos + 1)
    pairs = n_pos * (n - n_pos)
    assert pairs > 2**34
    assert roc_auc(scores, positives).item() == float(Fraction(doubled, 2 * pairs))


def test_nothing_is_modified_or_differentiated():
    scores, positives = torch.randn(4, 30).requires_grad_(), torch.rand(4, 30) < 0.3
    where = torch.rand(4, 30) < 0.9
    before = [t.detach().clone() for t in (scores, positives, where)]
    for rule in RULES:
        assert not fpr_at_tpr(scores, positives, 0.9, rule=rule, where=where).requires_grad
    assert not roc_auc(scores, positives, where=where).requires_grad
    assert not any(t.requires_grad for t in roc_curve(scores[0], positives[0]))
    for t, copy in zip((scores, positives, where), before, strict=True):
        assert torch.equal(t.detach(), copy)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_read_on_the_host(rule):
    """Compiled without a break, hence nothing depends on values."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def both(scores, positives):
        return roc_auc(scores, positives), fpr_at_tpr(scores, positives, (0.5, 0.9), rule=rule)

    scores, positives = torch.randn(3, 20), torch.rand(3, 20) < 0.4
    auc, fpr = both(scores, positives)
    assert_equal(auc, roc_auc(scores, positives))
    assert_equal(fpr, fpr_at_tpr(scores, positives, (0.5, 0.9), rule=rule))


# --- accumulated ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[30], [1] * 30, [0, 11, 0, 19]])
@pytest.mark.parametrize("rule", RULES)
def test_batches_are_one_list(sizes, rule):
    scores, positives = (torch.randn(30) * 2).round() / 2, torch.rand(30) < 0.4
    area, rates, rate = ROCAUC(), FPRAtTPR((0.9, 0.5), rule), FPRAtTPR(0.9, rule=rule)
    for s, p in zip(scores.split(sizes), positives.split(sizes), strict=True):
        for metric in (area, rates, rate):
            metric.update(s, p)
    for _ in range(2):
        assert len(area) == len(rates) == 30
        assert_equal(area.compute(), roc_auc(scores, positives))
        assert_equal(rates.compute(), fpr_at_tpr(scores, positives, (0.9, 0.5), rule=rule))
        assert_equal(rate.compute(), fpr_at_tpr(scores, positives, 0.9, rule=rule))
        area, rates, rate = pickle.loads(pickle.dumps((area, rates, rate)))
    area.reset()
    assert len(area) == 0 and area.compute().isnan()
    area.update(torch.tensor([1.0, 0.0]), flags("+-"))
    assert area.compute().item() == 1


def test_default_targets():
    metric = FPRAtTPR()
    assert metric.tpr == (0.98, 0.95, 0.92, 0.90) and metric.rule == "threshold"
    assert metric.compute().isnan().tolist() == [True] * 4
    assert FPRAtTPR(0.5).compute().shape == ()


def test_keeps_copies_without_a_graph():
    metric = ROCAUC()
    scores, positives = torch.tensor([2.0, 1.0], requires_grad=True), flags("+-")
    metric.update(scores * 1, positives)
    metric.update(scores.detach(), positives)
    with torch.no_grad():
        scores.copy_(torch.tensor([1.0, 2.0]))
    positives.fill_(True)
    assert metric.compute().item() == 1 and not metric.compute().requires_grad


def test_batches_of_several_dtypes_are_compared_exactly():
    metric = ROCAUC()
    metric.update(torch.tensor([1 + 2**-20]), flags("+"))
    metric.update(torch.tensor([1.0], dtype=torch.bfloat16), flags("-"))
    metric.update(torch.tensor([1 + 2**-40], dtype=torch.float64), flags("-"))
    assert metric.compute().item() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_of_several_devices():
    for devices in (("cpu", "cuda"), ("cuda", "cpu")):
        metric = FPRAtTPR((0.5, 1.0))
        for device, score in zip(devices, (1.0, 2.0), strict=True):
            metric.update(torch.tensor([score, 0.0], device=device), flags("+-").to(device))
        assert metric.compute().tolist() == [0, 0]
        assert metric.compute().device.type == devices[0]


# --- bad input ------------------------------------------------------------------------------------


BAD_LISTS = [
    ([1.0], flags("+"), TypeError, "scores must be a torch.Tensor, got list"),
    (torch.zeros(2, dtype=torch.int64), flags("+-"), TypeError, "scores must have dtype .*int64"),
    (torch.tensor(1.0), flags("+"), ValueError, "scores must have at least 1 dimension"),
    (torch.zeros(2), [True, False], TypeError, "positives must be a bool torch.Tensor, got list"),
    (torch.zeros(2), torch.tensor([1, 0]), TypeError, "positives must .*bool, got torch.int64 "),
    (torch.zeros(3), flags("+-"), ValueError, r"positives must .*\(3,\), got shape \(2,\)"),
]


@pytest.mark.parametrize(("scores", "positives", "error", "message"), BAD_LISTS)
def test_bad_lists(scores, positives, error, message):
    calls = {
        "roc_auc": lambda: roc_auc(scores, positives),
        "fpr_at_tpr": lambda: fpr_at_tpr(scores, positives),
        "roc_curve": lambda: roc_curve(scores, positives),
        "ROCAUC.update": lambda: ROCAUC().update(scores, positives),
        "FPRAtTPR.update": lambda: FPRAtTPR().update(scores, positives),
    }
    for name, call in calls.items():
        with pytest.raises(error, match=f"^{name}: {message}"):
            call()


@pytest.mark.parametrize("metric", [roc_auc, fpr_at_tpr])
def test_bad_masks(metric):
    with pytest.raises(TypeError, match=f"^{metric.__name__}: where must have dtype torch.bool"):
        metric(torch.zeros(2), flags("+-"), where=torch.ones(2))
    with pytest.raises(ValueError, match=rf"^{metric.__name__}: where must be broadcast.*\(3,\)"):
        metric(torch.zeros(2), flags("+-"), where=flags("+++"))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("roc_curve", roc_curve),
        ("ROCAUC.update", lambda *x: ROCAUC().update(*x)),
        ("FPRAtTPR.update", lambda *x: FPRAtTPR().update(*x)),
    ],
)
def test_one_list_is_one_dimension(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: scores must have 1 dimension, .*\(4, 1\)"):
        call(torch.zeros(4, 1), flags("+---").unsqueeze(1))
    with pytest.raises(ValueError, match=rf"^{name}: positives must have the shape .*\(1,\)"):
        call(torch.zeros(4), flags("+"))


def test_a_curve_needs_comparable_scores():
    with pytest.raises(ValueError, match=r"^roc_curve: scores must not hold NaN, got 2 NaN scores"):
        roc_curve(torch.tensor([NAN, 1.0, NAN]), flags("+-+"))


@pytest.mark.parametrize(
    ("tpr", "rule", "error", "message"),
    [
        (0, "threshold", ValueError, "tpr must be a number above 0 and at most 1.*got 0"),
        (-0.5, "threshold", ValueError, "tpr must be .*got -0.5"),
        (1.01, "threshold", ValueError, "tpr must be .*got 1.01"),
        (NAN, "threshold", ValueError, "tpr must be .*got nan"),
        (98, "threshold", ValueError, "tpr must be .*got 98"),
        (True, "threshold", TypeError, "tpr must be .*got True"),
        ("0.9", "threshold", TypeError, "tpr must be .*got '0'"),
        (None, "threshold", TypeError, "tpr must be .*got NoneType"),
        ((), "threshold", ValueError, "tpr must be .*got none"),
        ((0.9, 1.5), "threshold", ValueError, "tpr must be .*got 1.5"),
        ((0.9, None), "threshold", TypeError, "tpr must be .*got None"),
        (0.975, "rounded", ValueError, "tpr must be whole hundredths .*got 0.975"),
        (0.9, "round", ValueError, "rule must be one of 'threshold', .*got 'round'"),
    ],
)
def test_bad_targets(tpr, rule, error, message):
    with pytest.raises(error, match=f"^fpr_at_tpr: {message}"):
        fpr_at_tpr(torch.zeros(2), flags("+-"), tpr, rule=rule)
    with pytest.raises(error, match=f"^FPRAtTPR: {message}"):
        FPRAtTPR(tpr, rule)
