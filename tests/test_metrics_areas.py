"""Partial areas, average precision, accuracy and error at a true-positive rate.

Against loops over the definitions, exact where the metric is a ratio of counts, and by hand.
"""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_equal
from test_metrics import NAN, TARGETS, descending, flags, one_list, points

from rankreg_ext import metrics
from rankreg_ext.metrics import (
    PartialAUC,
    accuracy,
    average_precision,
    error_at_tpr,
    fpr_at_tpr,
    partial_auc,
    roc_auc,
)

RATES = (0.0, 0.25, 0.5, 0.9, 0.95, 0.98, 1 / 3)


def exact_area(scores, positives, low, high, raw, over="tpr"):
    """The integral of the polygon, in fractions: of 1 - FPR over TPR, or of TPR over FPR."""
    curve = points(scores, positives)
    n_pos, n_neg = curve[-1][2], curve[-1][1]
    corners = [(Fraction(fp, n_neg), Fraction(tp, n_pos)) for _, fp, tp in curve]
    if over == "tpr":  # x is what is integrated over
        corners = [(tpr, 1 - fpr) for fpr, tpr in corners]
    low, high = Fraction(low), Fraction(high)
    total = Fraction(0)
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        a, b = max(x0, low), min(x1, high)
        if a < b:
            slope = (y1 - y0) / (x1 - x0)
            total += (b - a) * (2 * y0 + slope * (a - x0) + slope * (b - x0)) / 2
    return float(total if raw else total / (high - low))


# --- partial areas --------------------------------------------------------------------------------


@settings(max_examples=150)
@given(one_list(), st.sampled_from(RATES), st.sampled_from(("raw", "normalised")))
def test_partial_areas_are_integrals_of_the_polygon(scores_and_positives, b, area):
    scores, positives = scores_and_positives
    value = partial_auc(scores, positives, min_tpr=b, area=area)
    assert value.shape == () and value.dtype == torch.float64
    expected = exact_area(scores, positives, b, 1, area == "raw")
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    value = partial_auc(scores, positives, max_fpr=1 - b, area=area)
    expected = exact_area(scores, positives, 0, 1 - b, area == "raw", over="fpr")
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@settings(max_examples=100)
@given(one_list())
def test_the_whole_range_is_the_auc(scores_and_positives):
    scores, positives = scores_and_positives
    whole = roc_auc(scores, positives)
    for area in ("raw", "normalised"):
        assert_equal(partial_auc(scores, positives, min_tpr=0, area=area), whole)
        assert_equal(partial_auc(scores, positives, max_fpr=1, area=area), whole)


@settings(max_examples=100)
@given(one_list())
def test_parts_add_up(scores_and_positives):
    scores, positives = scores_and_positives
    raw = partial_auc(scores, positives, min_tpr=(0.0, 0.4, 0.9), area="raw")
    mean = partial_auc(scores, positives, min_tpr=(0.0, 0.4, 0.9))
    assert raw.shape == mean.shape == (3,)
    torch.testing.assert_close(raw, mean * torch.tensor([1, 0.6, 0.1]).double(), rtol=1e-6, atol=0)
    # Wherever the corner begins, it is at least as hard as what it leaves out.
    assert raw[0] >= raw[1] >= raw[2]
    assert mean[0] >= mean[1] - 1e-12 and mean[1] >= mean[2] - 1e-12


@pytest.mark.parametrize(
    ("text", "b", "mean"),
    [
        ("+-+-", 0.5, 1 / 2),  # the worse positive has one of two negatives below it
        ("+-+-", 0.0, 3 / 4),
        ("+-+-", 0.75, 1 / 2),  # a part of one positive
        ("++--", 0.9, 1.0),
        ("--++", 0.9, 0.0),
        # Positives beat 4, 3 and 1 of 4; from 0.6 on 1/15 of the second is left, and the third.
        ("+-+--+-", 0.6, (1 / 15 * 3 / 4 + 1 / 3 * 1 / 4) / 0.4),
    ],
)
def test_corner_by_hand(text, b, mean):
    assert partial_auc(*descending(text), min_tpr=b).item() == pytest.approx(mean, rel=1e-14)


def test_a_tie_is_a_straight_line():
    # The curve is the diagonal: 1 - FPR falls from 0.2 to 0 beyond 0.8.
    scores, positives = torch.zeros(7), flags("++-----")
    assert partial_auc(scores, positives, min_tpr=0.8).item() == pytest.approx(0.1)
    assert partial_auc(scores, positives, max_fpr=0.2).item() == pytest.approx(0.1)
    assert partial_auc(scores, positives, max_fpr=0.2, area="raw").item() == pytest.approx(0.02)


# --- average precision ----------------------------------------------------------------------------


@settings(max_examples=150)
@given(one_list())
def test_average_precision_is_a_sum_over_thresholds(scores_and_positives):
    scores, positives = scores_and_positives
    curve = points(scores, positives)
    n_pos = curve[-1][2]
    total, before = Fraction(0), 0
    for _, fp, tp in curve[1:]:
        total += Fraction(tp - before, n_pos) * Fraction(tp, tp + fp)
        before = tp
    value = average_precision(scores, positives)
    assert value.shape == () and value.dtype == torch.float64
    assert value.item() == pytest.approx(float(total), rel=1e-13)


@pytest.mark.parametrize(
    ("scores", "text", "value"),
    [
        # The example of the scikit-learn manual: 0.83...
        ([0.1, 0.4, 0.35, 0.8], "--++", (1 + 2 / 3) / 2),
        ([3.0, 2.0, 1.0], "-+-", 1 / 2),
        ([3.0, 2.0, 1.0], "--+", 1 / 3),
        ([1.0, 1.0, 1.0, 1.0], "+---", 1 / 4),  # whatever the order within a tie
        ([2.0, 1.0, 1.0, 0.0], "++-+", (1 + 2 / 3 + 3 / 4) / 3),
        ([0.0, -0.0, 1.0], "+--", 1 / 3),
    ],
)
def test_average_precision_by_hand(scores, text, value):
    assert average_precision(torch.tensor(scores), flags(text)).item() == pytest.approx(value)


def test_a_list_by_hand():
    scores = torch.tensor([9, 8, 8, 7, 6, 6, 6, 5, 4, 3, 2, 1.0])
    positives = flags("++--+--+----")
    # Of 8 negatives, the positives have 8, 7, 4 and 4 below them and 0, 1, 2 and 0 beside them.
    assert roc_auc(scores, positives).item() == (8 + 7.5 + 5 + 4) / 32
    assert partial_auc(scores, positives, min_tpr=0.5).item() == (5 + 4) / 16
    # The third's line leads from 6 negatives left to 4: its lower half has 4.5 on average.
    assert partial_auc(scores, positives, min_tpr=0.625).item() == (4.5 / 2 + 4) / 12
    found = average_precision(scores, positives).item()
    assert found == pytest.approx((1 + 2 / 3 + 3 / 7 + 4 / 8) / 4)


# --- all metrics of one list ----------------------------------------------------------------------


BINARY = {
    "average_precision": average_precision,
    "min_tpr": lambda *a, **k: partial_auc(*a, min_tpr=0.7, **k),
    "max_fpr": lambda *a, **k: partial_auc(*a, max_fpr=0.3, **k),
}


@pytest.mark.parametrize("metric", BINARY.values(), ids=BINARY)
def test_masks_batches_and_undefined_lists(metric):
    scores, positives = (torch.randn(2, 3, 25) * 2).round(), torch.rand(2, 3, 25) < 0.4
    where = torch.rand(2, 3, 25) < 0.8
    scores = torch.where(where, scores, NAN)
    positives[1, 0] = True
    positives[1, 1] = False
    scores[1, 2, where[1, 2].nonzero()[0]] = NAN
    values = metric(scores, positives, where=where)
    assert values.shape == (2, 3) and values.dtype == torch.float64
    assert values.isnan().tolist() == [[False] * 3, [True] * 3]
    for j in range(3):
        kept = where[0, j]
        torch.testing.assert_close(
            values[0, j], metric(scores[0, j][kept], positives[0, j][kept]), rtol=1e-14, atol=0
        )
    for shape in [(0,), (3, 0), (0, 4), (2, 0, 4)]:
        empty = torch.empty(shape)
        assert metric(empty, empty > 0).shape == shape[:-1]
        assert metric(empty, empty > 0).isnan().all()
    row = metric(scores[0].nan_to_num(), torch.arange(25) < 9, where=torch.arange(25) < 20)
    assert row.shape == (3,) and not row.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("metric", BINARY.values(), ids=BINARY)
def test_scores_are_never_rounded(metric, dtype):
    step = torch.finfo(dtype).eps
    scores = torch.tensor([1.0, 1 + step, 1.0], dtype=dtype).requires_grad_()
    before = scores.detach().clone()
    value = metric(scores, flags("-+-"))
    assert value.item() == 1.0 and value.dtype == torch.float64 and not value.requires_grad
    assert torch.equal(scores.detach(), before)


@pytest.mark.parametrize("metric", BINARY.values(), ids=BINARY)
def test_an_increasing_function_of_the_scores_changes_nothing(metric):
    scores, positives = (torch.randn(5, 60) * 3).round(), torch.rand(5, 60) < 0.3
    assert_equal(metric(scores, positives), metric(scores.exp() - 7, positives))


def test_rules_under_their_other_names():
    scores, positives = (torch.randn(50) * 2).round(), torch.rand(50) < 0.5
    for rule, name in [
        ("threshold", "reached"),
        ("interpolate", "interpolated"),
        ("rounded", "alm"),
    ]:
        assert metrics.FPRAtTPR(rule=name).rule == rule
        assert_equal(
            fpr_at_tpr(scores, positives, TARGETS, rule=name),
            fpr_at_tpr(scores, positives, TARGETS, rule=rule),
        )


@pytest.mark.slow
def test_counts_beyond_what_float32_holds():
    """2^24 + 9 negatives, of which half precision has few values, and positives between them."""
    n = 2**24 + 9
    scores = torch.zeros(n + 3, dtype=torch.float16)
    scores[:5] = 1.0  # 5 negatives above 2 of the positives
    scores[n:] = torch.tensor([2.0, 0.5, 0.5], dtype=torch.float16)
    positives = torch.arange(n + 3) >= n
    assert roc_auc(scores, positives).item() == float(Fraction(3 * n - 10, 3 * n))
    assert fpr_at_tpr(scores, positives, 1.0).item() == 5 / n
    assert average_precision(scores, positives).item() == pytest.approx((1 + 2 * 3 / 8) / 3)


# --- several classes ------------------------------------------------------------------------------


def literal_error(scores, labels, c, tpr, below, population):
    """The classifier by its definition, item by item."""
    rows, labels = scores.double().tolist(), labels.tolist()
    own = sorted((row[c] for row, label in zip(rows, labels, strict=True) if label == c))[::-1]
    threshold = next(t for k, t in enumerate(own, 1) if k / len(own) >= tpr)
    wrong = []
    for row, label in zip(rows, labels, strict=True):
        if row[c] >= threshold:
            called = c
        else:
            names = [k for k in range(len(row)) if below == "argmax" or k != c]
            called = max(names, key=lambda k: row[k])  # the first of equal scores
        if population == "all" or (label == c) == (population == "critical"):
            wrong.append(called != label)
    return sum(wrong) / len(wrong)


@settings(max_examples=150)
@given(
    st.integers(2, 40),
    st.integers(2, 5),
    st.sampled_from((0.5, 0.8, 0.9, 1.0)),
    st.sampled_from(("argmax", "others")),
    st.sampled_from(("all", "critical", "others")),
    st.integers(0, 2**32 - 1),
)
def test_error_at_tpr_is_that_of_the_classifier(n, classes, tpr, below, population, seed):
    g = torch.Generator().manual_seed(seed)
    scores = (torch.randn(n, classes, generator=g) * 2).round() / 2
    labels = torch.randint(classes, (n,), generator=g)
    labels[0], labels[1] = classes - 1, 0
    for c in (0, classes - 1):
        value = error_at_tpr(scores, labels, c, tpr, below=below, population=population)
        assert value.shape == () and value.dtype == torch.float64
        assert value.item() == literal_error(scores, labels, c, tpr, below, population)


def test_error_at_tpr_by_hand():
    # Class 1 is critical. Items of it score 3, 1 and -1; at 2/3 the threshold is 1.
    scores = torch.tensor(
        [[0.0, 3.0], [2.0, 1.0], [0.0, -1.0], [5.0, 1.0], [5.0, 0.0], [-2.0, 0.0]]
    )
    labels = torch.tensor([1, 1, 1, 0, 0, 0])

    def error(tpr=2 / 3, **kw):
        return error_at_tpr(scores, labels, 1, tpr, **kw).item()

    # The third is missed, the fourth overridden, and the last is called 1 by its highest score.
    assert error() == 3 / 6
    assert error(below="others") == 2 / 6
    assert error(population="critical") == 1 / 3
    assert error(population="others") == 2 / 3
    assert error(below="others", population="others") == 1 / 3
    # All of the class: the threshold is -1, which everything reaches.
    assert error(1.0) == 3 / 6 and error(1.0, population="critical") == 0
    # Of two classes, the false alarms are the false-positive rate.
    for tpr in (0.3, 0.6, 1.0):
        false_alarms = error(tpr, below="others", population="others")
        assert false_alarms == fpr_at_tpr(scores[:, 1], labels == 1, tpr).item()


def test_error_at_tpr_of_several_classes_rates_and_lists():
    scores, labels = torch.randn(2, 3, 30, 4), torch.arange(30) % 4
    where = torch.rand(2, 3, 30) < 0.9
    errors = error_at_tpr(scores, labels, (2, 0), (0.8, 0.9, 1.0), where=where)
    assert errors.shape == (2, 3, 2, 3)
    for i, c in enumerate((2, 0)):
        assert_equal(
            error_at_tpr(scores, labels, c, (0.8, 0.9, 1.0), where=where), errors[..., i, :]
        )
        assert_equal(error_at_tpr(scores, labels, c, 0.9, where=where), errors[..., i, 1])
    assert_equal(error_at_tpr(scores, labels, (2, 0), 0.9, where=where), errors[..., 1])
    kept = where[1, 2]
    assert_equal(
        error_at_tpr(scores[1, 2][kept], labels[kept], (2, 0), (0.8, 0.9, 1.0)), errors[1, 2]
    )


def test_undefined_errors_are_nan():
    scores, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert error_at_tpr(scores, labels % 2, (0, 1, 2)).isnan().tolist() == [False, False, True]
    assert error_at_tpr(scores, labels * 0, 0).isnan()
    scores[5, 1] = NAN  # any score of an item decides what it is called
    assert error_at_tpr(scores, labels, (0, 1, 2)).isnan().all()
    assert not error_at_tpr(scores, labels, (0, 1), where=torch.arange(6) < 5).isnan().any()
    assert accuracy(scores, labels).isnan()
    assert not accuracy(scores, labels, where=torch.arange(6) < 5).isnan()
    for n in (0, 6):
        nothing = torch.zeros(n, dtype=torch.bool)
        assert error_at_tpr(torch.randn(n, 3), labels[:n], 0, where=nothing).isnan()
        assert accuracy(torch.randn(n, 3), labels[:n], where=nothing).isnan()
    assert error_at_tpr(torch.randn(0, 5, 3), labels[:5], (0, 1)).shape == (0, 2)


def test_labels_beyond_the_classes_are_never_right():
    scores = torch.zeros(4, 2)
    assert accuracy(scores, torch.tensor([0, 0, -1, 7])).item() == 0.5
    labels = torch.tensor([0, 1, 255, 255], dtype=torch.uint8)
    assert accuracy(scores, labels).item() == 0.25
    assert error_at_tpr(scores, labels, 1, 1.0).item() == 0.75


def test_accuracy_of_lists():
    scores, labels = torch.randn(3, 20, 5), torch.randint(5, (3, 20))
    where = torch.rand(20) < 0.7
    for i, value in enumerate(accuracy(scores, labels, where=where)):
        hits = [
            max(range(5), key=lambda k: row[k]) == label
            for row, label, kept in zip(
                scores[i].tolist(), labels[i].tolist(), where.tolist(), strict=True
            )
            if kept
        ]
        assert value.item() == sum(hits) / len(hits)


def test_nothing_is_read_on_the_host():
    torch._dynamo.reset()

    def everything(scores, labels):
        positives = labels == 1
        return (
            partial_auc(scores[..., 1], positives, min_tpr=(0.5, 0.9)),
            partial_auc(scores[..., 1], positives, max_fpr=0.3),
            average_precision(scores[..., 1], positives),
            accuracy(scores, labels),
            error_at_tpr(scores, labels, (0, 1), (0.5, 0.9), below="others"),
        )

    scores, labels = torch.randn(2, 20, 3), torch.randint(3, (2, 20))
    compiled = torch.compile(everything, fullgraph=True, backend="eager")(scores, labels)
    for value, expected in zip(compiled, everything(scores, labels), strict=True):
        assert_equal(value, expected)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of min_tpr and max_fpr must be given, got none"),
        ({"min_tpr": 0.5, "max_fpr": 0.5}, ValueError, "exactly one .* got both"),
        ({"min_tpr": 1.0}, ValueError, "min_tpr must be a number of at least 0 and below 1.*got 1"),
        ({"min_tpr": (0.5, -0.1)}, ValueError, "min_tpr must be .*got -0.1"),
        ({"min_tpr": "a"}, TypeError, "min_tpr must be .*got 'a'"),
        ({"max_fpr": 0.0}, ValueError, "max_fpr must be a number above 0 and at most 1.*got 0"),
        ({"max_fpr": True}, TypeError, "max_fpr must be .*got True"),
        ({"max_fpr": ()}, ValueError, "max_fpr must be .*got none"),
        ({"max_fpr": NAN}, ValueError, "max_fpr must be .*got nan"),
        ({"min_tpr": 0.5, "area": "mean"}, ValueError, "area must be one of 'normalised', 'raw'"),
    ],
)
def test_bad_parts(arguments, error, message):
    with pytest.raises(error, match=f"^partial_auc: {message}"):
        partial_auc(torch.zeros(2), flags("+-"), **arguments)
    with pytest.raises(error, match=f"^PartialAUC: {message}"):
        PartialAUC(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": torch.zeros(3)}, ValueError, r"scores must be \(\.\.\., n, C\) .*\(3,\)"),
        ({"scores": torch.zeros(3, 1)}, ValueError, r"scores must be .*C >= 2 .*\(3, 1\)"),
        ({"scores": torch.zeros(3, 4).long()}, TypeError, "scores must have dtype"),
        ({"labels": [0, 1, 2]}, TypeError, "labels must be an integer torch.Tensor, got list"),
        ({"labels": torch.zeros(3)}, TypeError, "labels must have an integer dtype, got .*float32"),
        ({"labels": flags("+-+")}, TypeError, "labels must have an integer dtype, got torch.bool"),
        ({"labels": torch.zeros(2).long()}, ValueError, r"labels must be broadcast.*\(2,\)"),
        ({"where": torch.ones(3)}, TypeError, "where must have dtype torch.bool"),
        ({"critical": 4}, ValueError, "critical must be classes of scores, of which .* 4, got 4"),
        ({"critical": -1}, ValueError, "critical must be a class.*got -1"),
        ({"critical": ()}, ValueError, "critical must be a class.*got none"),
        ({"critical": 1.0}, TypeError, "critical must be a class.*got float"),
        ({"critical": (0, True)}, TypeError, "critical must be a class.*got True"),
        ({"tpr": 0}, ValueError, "tpr must be .*got 0"),
        ({"below": "top"}, ValueError, "below must be one of 'argmax', 'others', got 'top'"),
        ({"population": "rest"}, ValueError, "population must be one of .*got 'rest'"),
    ],
)
def test_bad_errors(change, error, message):
    arguments = {"scores": torch.zeros(3, 4), "labels": torch.zeros(3).long(), "critical": 1}
    with pytest.raises(error, match=f"^error_at_tpr: {message}"):
        error_at_tpr(**{**arguments, **change})
