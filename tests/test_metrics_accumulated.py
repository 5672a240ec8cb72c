"""Accumulating metrics: the list as a whole, whatever its batches, types, processes and storage."""

import copy
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_equal
from test_metrics import NAN, flags

from rankreg_ext.metrics import (
    ROCAUC,
    Accuracy,
    AveragePrecision,
    ErrorAtTPR,
    FPRAtTPR,
    PartialAUC,
    accuracy,
    average_precision,
    error_at_tpr,
    fpr_at_tpr,
    partial_auc,
    roc_auc,
)
from rankreg_ext.metrics import _store as store

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RATES = (0.5, 0.9, 0.98)
# The class, and the function of the whole list that it stands for.
BINARY = {
    "FPRAtTPR": (lambda: FPRAtTPR(RATES), lambda s, p: fpr_at_tpr(s, p, RATES)),
    "interpolate": (
        lambda: FPRAtTPR(RATES, "interpolate"),
        lambda s, p: fpr_at_tpr(s, p, RATES, rule="interpolate"),
    ),
    "rounded": (lambda: FPRAtTPR(0.5, "alm"), lambda s, p: fpr_at_tpr(s, p, 0.5, rule="alm")),
    "ROCAUC": (ROCAUC, roc_auc),
    "min_tpr": (
        lambda: PartialAUC(min_tpr=RATES, area="raw"),
        lambda s, p: partial_auc(s, p, min_tpr=RATES, area="raw"),
    ),
    "max_fpr": (lambda: PartialAUC(max_fpr=0.3), lambda s, p: partial_auc(s, p, max_fpr=0.3)),
    "AveragePrecision": (AveragePrecision, average_precision),
}
SEVERAL = {
    "ErrorAtTPR": (lambda: ErrorAtTPR(1), lambda s, y: error_at_tpr(s, y, 1, (0.8, 0.9))),
    "classes": (
        lambda: ErrorAtTPR((0, 2), 0.5, below="others", population="others"),
        lambda s, y: error_at_tpr(s, y, (0, 2), 0.5, below="others", population="others"),
    ),
    "critical": (
        lambda: ErrorAtTPR((0, 1), (0.5, 1.0), population="critical"),
        lambda s, y: error_at_tpr(s, y, (0, 1), (0.5, 1.0), population="critical"),
    ),
    "Accuracy": (Accuracy, accuracy),
}


def assert_same(name, actual, expected):
    """Equal; an average precision that was summed in another order may differ in its last bits."""
    if name == "AveragePrecision":
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0, equal_nan=True)
    else:
        assert_equal(actual, expected)


def lists(name, n, dtype, seed=0):
    """Scores, with ties, and the positives or the labels that the metric wants."""
    g = torch.Generator().manual_seed(seed)
    if name in BINARY:
        scores = (torch.randn(n, generator=g, dtype=torch.float64) * 3).round() / 3
        return scores.to(dtype), torch.rand(n, generator=g) < 0.3
    scores = (torch.randn(n, 3, generator=g, dtype=torch.float64) * 3).round() / 3
    return scores.to(dtype), torch.randint(3, (n,), generator=g)


@pytest.fixture(params=["one by one", "sorted"])
def storage(request, monkeypatch):
    """Small limits, so that short lists go through every form of storage."""
    if request.param == "sorted":
        monkeypatch.setattr(store, "_PENDING_ITEMS", 16)


EVERY = {**BINARY, **SEVERAL}


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
@pytest.mark.parametrize("name", EVERY)
def test_batches_are_one_list(name, dtype, storage):
    make, function = EVERY[name]
    scores, targets = lists(name, 90, dtype)
    for sizes in ([90], [0, 40, 0, 20, 7, 23], [1] * 9 + [9] * 9):
        metric = make()
        for s, t in zip(scores.split(sizes), targets.split(sizes), strict=True):
            metric.update(s, t)
        assert len(metric) == 90
        assert_same(name, metric.compute(), function(scores, targets))
        assert_same(name, metric.compute(), function(scores, targets))  # and nothing is lost
    metric.reset()
    assert len(metric) == 0
    assert_equal(metric.compute(), function(scores[:0], targets[:0]))
    metric.update(scores[:50], targets[:50])
    assert_same(name, metric.compute(), function(scores[:50], targets[:50]))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64))
@pytest.mark.parametrize("name", EVERY)
def test_states_travel(name, dtype, storage):
    make, function = EVERY[name]
    scores, targets = lists(name, 120, dtype, seed=1)
    parts = []
    for s, t in zip(scores.split(50), targets.split(50), strict=True):
        parts.append(make())
        for start in range(0, len(s), 9):
            parts[-1].update(s[start : start + 9], t[start : start + 9])
    parts.append(make())  # of a process that had nothing to do
    states = [pickle.loads(pickle.dumps(part.state_dict())) for part in parts]
    expected = function(scores, targets)

    merged = make()
    assert merged.merge_state(states[::-1]) is merged
    assert len(merged) == 120
    assert_same(name, merged.compute(), expected)
    first = copy.deepcopy(parts[0]).merge_state(parts[1:])
    assert_same(name, first.compute(), expected)
    assert len(parts[0]) == 50

    # Loading replaces; what was loaded is independent of what it came from.
    other = make()
    other.update(scores[:5], targets[:5])
    other.load_state_dict(first.state_dict())
    first.reset()
    assert_same(name, other.compute(), expected)
    other = pickle.loads(pickle.dumps(other))
    other.update(scores[:30], targets[:30])
    twice = torch.cat([scores, scores[:30]]), torch.cat([targets, targets[:30]])
    assert_same(name, other.compute(), function(*twice))


@pytest.mark.parametrize("name", EVERY)
def test_masked_items_are_dropped(name, storage):
    make, function = EVERY[name]
    for dtype in (torch.float16, torch.float32):
        scores, targets = lists(name, 80, dtype)
        where = torch.arange(80) % 3 > 0
        bad = scores.clone()
        bad[~where] = NAN
        metric = make()
        for part in range(0, 80, 11):
            cut = slice(part, part + 11)
            metric.update(bad[cut], targets[cut], where=where[cut])
        assert len(metric) == int(where.sum())
        assert_same(name, metric.compute(), function(scores[where], targets[where]))


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
@pytest.mark.parametrize("name", EVERY)
def test_nan_and_missing_classes(name, dtype, storage):
    make, function = EVERY[name]
    scores, targets = lists(name, 40, dtype)
    with_nan = scores.clone()
    with_nan[7] = NAN
    cases = [
        (with_nan, targets),
        (scores * NAN, targets),
        (scores, torch.zeros_like(targets)),
        (scores, torch.ones_like(targets)),
    ]
    for s, t in cases:
        metric = make()
        metric.update(s, t)
        assert_equal(metric.compute(), function(s, t))
        assert_equal(make().merge_state([metric]).compute(), function(s, t))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(FLOATS), st.integers(0, 12)), min_size=1, max_size=12),
    st.sampled_from(sorted(EVERY)),
    st.sampled_from((1, 10, 2**16)),
    st.integers(0, 2**32 - 1),
)
def test_several_types_are_compared_exactly(batches, name, limit, seed):
    make, function = EVERY[name]
    metric, scores, targets = make(), [], []
    limits = pytest.MonkeyPatch()
    limits.setattr(store, "_PENDING_ITEMS", limit)
    for i, (dtype, n) in enumerate(batches):
        s, t = lists(name, n, dtype, seed=seed + i)
        metric.update(s, t)
        scores.append(s.double())
        targets.append(t)
    assert_same(name, metric.compute(), function(torch.cat(scores), torch.cat(targets)))
    limits.undo()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_every_value_of_half_precision_has_its_place(dtype):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    values = bits.view(dtype)
    place = store._bins(values)
    finite = ~values.isnan()
    assert (place[~finite] == 2**16).all()
    order = values[finite].double()
    by_place = place[finite].argsort()
    assert (order[by_place].diff() >= 0).all()
    assert len(place[finite].unique()) == len(order.unique())  # -0.0 and 0.0 share theirs
    counts = torch.zeros(1, 2**16 + 1, dtype=torch.int64).index_add_(
        1, place, torch.ones(1, 2**16, dtype=torch.int64)
    )
    found, items = store._rows_of(counts, dtype)
    assert found.dtype == dtype and found[-1].isnan() and not found[:-1].isnan().any()
    assert torch.equal(found[:-1].double(), order.unique())
    assert int(items.sum()) == 2**16 and items[found == 0].item() == 2


def test_memory():
    """float32: 4 bytes per item past the last 2^16. Half precision: the same for any number."""
    n, batch = 400_000, 1000

    def held(dtype):
        metric = FPRAtTPR()
        g = torch.Generator().manual_seed(0)
        for _ in range(n // batch):
            scores = torch.randn(batch, generator=g).to(dtype)
            metric.update(scores, torch.rand(batch, generator=g) < 0.01)
        (kept,) = metric._stores
        tensors = [t for pair in kept._pending for t in pair]
        tensors += [t for parts in kept._parts for t in parts] + list(kept._counts.values())
        assert len(metric) == n
        return sum(t.numel() * t.element_size() for t in tensors), len(tensors)

    size, tensors = held(torch.float32)
    assert 4 * n <= size <= 4 * n + 2**16 and tensors < 2 * 2**8
    size, _ = held(torch.bfloat16)
    assert size <= 2 * 8 * (2**16 + 1) + 3 * 2**16


def test_small_batches_do_not_pile_up():
    metric = ROCAUC()
    for i in range(1000):
        metric.update(torch.tensor([float(i)]), flags("+" if i % 2 else "-"))
    (kept,) = metric._stores
    assert len(kept._pending) < 256 and all(len(parts) <= 10 for parts in kept._parts)
    assert metric.compute().item() == (500 * 501 / 2) / 500**2


@pytest.mark.parametrize("scale", [2**24 + 1, 2**31 + 1, 2**40 + 1])
def test_counts_beyond_32_bits(scale):
    """So many items of each score, from states; their pairs are more than 64 bits hold at last."""
    scores = torch.tensor([2.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float16)
    positives = flags("-+-+-")
    states = []
    for metric in (ROCAUC(), FPRAtTPR((0.5, 1.0)), PartialAUC(min_tpr=0.5), AveragePrecision()):
        metric.update(scores, positives)
        state = metric.state_dict()
        for key in state:
            if ".counts." in key:
                state[key] = state[key] * scale
        metric.load_state_dict(state)
        states.append(metric)
    # One item more: a negative at the top, where it ties with a third of the others.
    for metric in states:
        metric.update(scores[:1], flags("-"))
    auc, fpr, corner, precision = states
    p, n = 2 * scale, 3 * scale + 1
    assert len(auc) == p + n
    # A positive at 1 beats the scale negatives at 0 and half of those at 1, one at 0 half of its.
    half = Fraction(scale, 2)
    assert auc.compute().item() == pytest.approx(float((scale + half + half) / (2 * n)), rel=1e-15)
    assert corner.compute().item() == pytest.approx(float(half / n), rel=1e-15)
    assert fpr.compute().tolist() == [(2 * scale + 1) / n, 1.0]
    expected = (scale / (3 * scale + 1) + 2 * scale / (5 * scale + 1)) / 2
    assert precision.compute().item() == pytest.approx(expected, rel=1e-15)


def test_accumulated_metrics_keep_the_type_and_the_device():
    metric = FPRAtTPR()
    metric.update(torch.randn(5, dtype=torch.float64), flags("+-+--"))
    assert all(v.dtype == torch.float64 for k, v in metric.state_dict().items() if ".scores." in k)
    assert metric.to("cpu") is metric and metric.compute().device.type == "cpu"
    assert FPRAtTPR().to("cpu").compute().isnan().all()
    assert Accuracy().to("cpu").compute().isnan()
    moved = metric.to("meta")
    assert all(v.device.type == "meta" for k, v in moved.state_dict().items() if "." in k)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_metrics_move(name, storage):
    make, function = EVERY[name]
    for dtype in (torch.float16, torch.float32):
        scores, targets = lists(name, 60, dtype)
        metric = make()
        metric.update(scores[:30].cuda(), targets[:30].cuda())
        state = metric.state_dict()
        metric.to("cpu").update(scores[30:], targets[30:])
        value = metric.compute()
        assert value.device.type == "cpu"
        assert_same(name, value, function(scores, targets))
        metric = make()
        metric.update(scores[30:].cuda(), targets[30:].cuda())
        value = metric.merge_state([state]).compute()
        assert value.device.type == "cuda"
        assert_same(name, value.cpu(), function(scores, targets))


def test_batches_wait_without_a_copy_on_the_host():
    """What update does with a batch depends on no value, until a block is sorted."""
    metric = ErrorAtTPR((0, 1))
    scores, labels = torch.randn(4, 3, device="meta"), torch.zeros(4, 3, device="meta")[:, 0].long()
    metric.update(scores, labels, where=labels == 0)
    metric = FPRAtTPR()
    metric.update(scores[:, 0], labels == 0, where=labels == 0)
    counted = Accuracy()
    counted.update(scores, labels)
    assert counted.compute().device.type == "meta"


# --- bad input ------------------------------------------------------------------------------------


def test_states_of_another_metric_are_refused():
    auc, error, three = ROCAUC(), ErrorAtTPR((0, 1)), ErrorAtTPR((0, 1, 2))
    for metric, state in [(auc, error), (error, three), (Accuracy(), auc), (auc, Accuracy())]:
        name = type(metric).__name__
        with pytest.raises(ValueError, match=rf"^{name}.load_state_dict: state must be that of"):
            metric.load_state_dict(state.state_dict())
        with pytest.raises(ValueError, match=rf"^{name}.merge_state: state must be that of"):
            metric.merge_state([state])
    with pytest.raises(ValueError, match=r"^ROCAUC.load_state_dict: .* got None"):
        auc.load_state_dict({})
    # The same scores serve every metric of them.
    auc.update(torch.tensor([2.0, 1.0]), flags("+-"))
    assert AveragePrecision().merge_state([auc]).compute().item() == 1


@pytest.mark.parametrize("make", [ROCAUC, AveragePrecision, FPRAtTPR], ids=lambda m: m.__name__)
def test_bad_batches(make):
    name = make.__name__
    with pytest.raises(ValueError, match=rf"^{name}.update: scores must have 1 dimension"):
        make().update(torch.zeros(2, 2), flags("+-"))
    with pytest.raises(ValueError, match=rf"^{name}.update: where must have the shape of scores"):
        make().update(torch.zeros(2), flags("+-"), where=flags("+"))
    with pytest.raises(TypeError, match=rf"^{name}.update: where must have dtype torch.bool"):
        make().update(torch.zeros(2), flags("+-"), where=torch.ones(2))


def test_bad_batches_of_several_classes():
    labels = torch.zeros(2).long()
    for metric in (ErrorAtTPR(1), Accuracy()):
        name = type(metric).__name__
        with pytest.raises(ValueError, match=rf"^{name}.update: scores must have 2 dimensions"):
            metric.update(torch.zeros(2, 2, 2), labels)
        with pytest.raises(TypeError, match=rf"^{name}.update: labels must have an integer"):
            metric.update(torch.zeros(2, 2), labels.float())
    with pytest.raises(ValueError, match=r"^ErrorAtTPR.update: critical must be classes .*got 5"):
        ErrorAtTPR((0, 5)).update(torch.zeros(2, 3), labels)
    with pytest.raises(ValueError, match=r"^ErrorAtTPR: below must be one of"):
        ErrorAtTPR(0, below="none")
    with pytest.raises(ValueError, match=r"^ErrorAtTPR: tpr must be"):
        ErrorAtTPR(0, (0.5, 2))
