"""Bootstrap intervals against the enumeration of every resample, and their coverage."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from samples import assert_equal
from test_metrics import NAN, flags

from rankreg_ext.metrics import (
    accuracy,
    average_precision,
    bootstrap,
    bootstrap_difference,
    error_at_tpr,
    fpr_at_tpr,
    partial_auc,
    roc_auc,
)
from rankreg_ext.metrics._bootstrap import draws


def every_resample(targets, stratified):
    """All equally likely draws of as many items with replacement."""
    n = len(targets)
    if not stratified:
        return list(itertools.product(range(n), repeat=n))
    strata = [(targets == c).nonzero().flatten().tolist() for c in targets.unique()]
    per_stratum = [itertools.product(s, repeat=len(s)) for s in strata]
    return [sum(parts, ()) for parts in itertools.product(*per_stratum)]


def distribution(values):
    out = {}
    for v in values:
        out["nan" if math.isnan(v) else v] = out.get("nan" if math.isnan(v) else v, 0) + 1
    return {v: count / len(values) for v, count in out.items()}


METRICS = {
    "auc": roc_auc,
    "average_precision": average_precision,
    "fpr": functools.partial(fpr_at_tpr, tpr=0.5),
    "partial_auc": functools.partial(partial_auc, min_tpr=0.5),
}


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_resamples_are_all_equally_likely(metric, stratified):
    scores, positives = torch.tensor([0.5, 1.0, 3.0, 2.0, 1.0]), flags("-+-+-")
    exact = [
        metric(scores[list(i)], positives[list(i)]).item()
        for i in every_resample(positives, stratified)
    ]
    expected = distribution([round(v, 12) for v in exact])
    count = 4000
    found = bootstrap(metric, scores, positives, resamples=count, stratified=stratified)
    assert found.samples.shape == (count,)
    seen = distribution([round(v, 12) for v in found.samples.tolist()])
    assert set(seen) <= set(expected)
    for value, p in expected.items():
        assert abs(seen.get(value, 0) - p) < 5 * math.sqrt(p * (1 - p) / count), value
    assert found.defined == count - seen.get("nan", 0) * count
    assert ("nan" in expected) != stratified
    defined = [v for v in found.samples.tolist() if not math.isnan(v)]
    low, high = np.quantile(defined, [0.025, 0.975])
    assert found.low.item() == pytest.approx(low) and found.high.item() == pytest.approx(high)
    assert_equal(found.estimate, metric(scores, positives))


def test_strata_keep_their_sizes():
    labels = torch.tensor([2, 0, 2, 1, 0, 2, 7])
    (index,) = draws(labels, 300, True, 0, 300)
    assert index.shape == (300, 7)
    drawn = labels[index].sort(1).values
    assert torch.equal(drawn, labels.sort().values.expand(300, 7))
    for place in range(7):  # every item is drawn sometimes
        assert (index == place).any()
    (index,) = draws(labels, 300, False, 0, 300)
    assert index.unique().tolist() == list(range(7))
    assert not torch.equal(labels[index].sort(1).values, labels.sort().values.expand(300, 7))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_ends_are_quantiles(level):
    scores, positives = torch.randn(40), torch.rand(40) < 0.4
    found = bootstrap(roc_auc, scores, positives, resamples=101, level=level)
    tail = (1 - level) / 2
    low, high = np.quantile(found.samples.numpy(), [tail, 1 - tail])
    assert found.low.item() == pytest.approx(low, rel=1e-12)
    assert found.high.item() == pytest.approx(high, rel=1e-12)


def test_one_resample_is_its_own_interval():
    found = bootstrap(roc_auc, torch.randn(9), flags("+-+-+-+-+"), resamples=1)
    assert found.low == found.high == found.samples[0] and found.defined == 1


@pytest.mark.parametrize("stratified", [True, False])
def test_memory_bounds_change_nothing(stratified):
    scores, positives = torch.randn(3, 37), torch.rand(37) < 0.4
    metric = functools.partial(fpr_at_tpr, tpr=(0.5, 0.9))
    whole = bootstrap(metric, scores, positives, resamples=50, stratified=stratified)
    assert whole.samples.shape == (50, 3, 2) and whole.low.shape == (3, 2)
    for max_items in (1, 3 * 37 * 7, 3 * 37 * 49):
        parts = bootstrap(
            metric, scores, positives, resamples=50, stratified=stratified, max_items=max_items
        )
        for a, b in zip(whole, parts, strict=True):
            assert_equal(a, b)
    other = bootstrap(metric, scores, positives, resamples=50, stratified=stratified, seed=1)
    assert not torch.equal(other.samples, whole.samples)
    # Nor does the generator of everyone else.
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = bootstrap(metric, scores, positives, resamples=50, stratified=stratified)
    assert_equal(again.samples, whole.samples)
    assert torch.equal(torch.get_rng_state(), state)


def test_lists_share_their_resamples():
    scores, positives = torch.randn(2, 30), torch.rand(30) < 0.5
    together = bootstrap(roc_auc, scores, positives, resamples=60)
    for i in range(2):
        alone = bootstrap(roc_auc, scores[i], positives, resamples=60)
        assert_equal(together.samples[:, i], alone.samples)
        assert_equal(together.high[i], alone.high)
    both = bootstrap_difference(roc_auc, scores[0], scores[1], positives, resamples=60)
    assert_equal(both.samples, together.samples[:, 0] - together.samples[:, 1])
    assert_equal(both.estimate, together.estimate[0] - together.estimate[1])
    stack = bootstrap_difference(roc_auc, scores, scores.flip(0), positives, resamples=60)
    assert_equal(stack.samples[:, 0], both.samples)
    assert_equal(stack.low[1], -both.high)


def test_difference_of_a_model_and_itself_is_none():
    scores, positives = torch.randn(50), torch.rand(50) < 0.4
    same = bootstrap_difference(roc_auc, scores, scores.double() * 2, positives, resamples=40)
    assert same.low == same.high == same.estimate == 0
    # Scores of two types are compared as they are, and each among its own.
    coarse = bootstrap_difference(roc_auc, scores.half(), scores, positives, resamples=40)
    half, full = (
        bootstrap(roc_auc, s, positives, resamples=40).samples for s in (scores.half(), scores)
    )
    assert_equal(coarse.samples, half - full)


def test_pairing_narrows_the_interval():
    g = torch.Generator().manual_seed(0)
    positives = torch.arange(200) < 60
    easy = torch.randn(200, generator=g) + positives
    first, second = (easy + 0.1 * torch.randn(200, generator=g) for _ in range(2))
    paired = bootstrap_difference(roc_auc, first, second, positives, resamples=300)
    alone = bootstrap(roc_auc, first, positives, resamples=300)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_several_classes():
    scores, labels = torch.randn(30, 4), torch.arange(30) % 4
    metric = functools.partial(error_at_tpr, critical=(1, 2), tpr=0.8)
    found = bootstrap(metric, scores, labels, resamples=20)
    (index,) = draws(labels, 20, True, 0, 20)
    for i in range(20):
        assert_equal(found.samples[i], metric(scores[index[i]], labels[index[i]]))
    models = torch.stack([scores, scores.flip(1)])
    both = bootstrap(accuracy, models, labels, resamples=20, max_items=500)
    for i in range(20):
        assert_equal(both.samples[i, 1], accuracy(scores.flip(1)[index[i]], labels[index[i]]))


def test_undefined_resamples_are_counted():
    scores = torch.arange(6.0)
    rare = bootstrap(roc_auc, scores, flags("-----+"), resamples=500, stratified=False)
    missing = (5 / 6) ** 6  # no item of the one positive
    assert abs(1 - rare.defined.item() / 500 - missing) < 5 * math.sqrt(missing / 500)
    assert rare.low == rare.high == rare.estimate == 1
    for never in (
        bootstrap(roc_auc, scores, flags("------"), resamples=5),
        bootstrap(roc_auc, scores * NAN, flags("--++++"), resamples=5),
    ):
        assert never.defined == 0
        assert never.low.isnan() and never.high.isnan() and never.estimate.isnan()


@pytest.mark.parametrize("stratified", [True, False])
def test_coverage(stratified):
    """Of 100 samples from two normals, about 95 % of the intervals hold the true area."""
    g = torch.Generator().manual_seed(0)
    truth = 0.5 * (1 + math.erf(1.0 / 2))  # means 1 apart, of variance 1: Phi(1 / sqrt 2)
    positives = torch.arange(100) < 40
    hits = 0
    for seed in range(100):
        scores = torch.randn(100, generator=g) + positives
        found = bootstrap(
            roc_auc, scores, positives, resamples=150, stratified=stratified, seed=seed
        )
        hits += bool(found.low <= truth <= found.high)
    assert 87 <= hits < 100


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": [1.0]}, TypeError, "scores must be a torch.Tensor, got list"),
        ({"scores": torch.zeros(4)}, ValueError, r"scores must be .*got shapes \(4,\) and \(3,\)"),
        ({"targets": [True]}, TypeError, "targets must be a bool or integer .*got list"),
        ({"targets": torch.zeros(3)}, TypeError, "targets must be bool or integers, got .*float32"),
        (
            {"targets": torch.zeros(3).long()},
            ValueError,
            r"scores must be \(\.\.\., n, C\) for int",
        ),
        ({"targets": flags("+-+").view(1, 3)}, ValueError, "scores must be .* for bool targets"),
        (
            {"scores": torch.zeros(0), "targets": flags("")},
            ValueError,
            "targets must have at least",
        ),
        ({"resamples": 0}, ValueError, "resamples must be an integer of at least 1, got 0"),
        ({"resamples": 1.5}, TypeError, "resamples must be an integer"),
        ({"level": 1}, ValueError, "level must be a number between 0 and 1, got 1"),
        ({"level": "0.9"}, TypeError, "level must be .*got '0.9'"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
        ({"max_items": 0}, ValueError, "max_items must be an integer of at least 1"),
        ({"metric": lambda s, p: s.mean()}, ValueError, r"metric must return .*got \(\)"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"metric": roc_auc, "scores": torch.zeros(3), "targets": flags("+-+")}
    arguments |= change
    with pytest.raises(error, match=f"^bootstrap: {message}"):
        bootstrap(**arguments)
    with pytest.raises(error, match=f"^bootstrap_difference: {message}"):
        bootstrap_difference(**arguments, other=arguments["scores"])


def test_models_must_have_the_same_items():
    with pytest.raises(ValueError, match=r"^bootstrap_difference: other must have the shape .*4"):
        bootstrap_difference(roc_auc, torch.zeros(3), torch.zeros(4), flags("+-+"))
