"""Variants of RankReg: rules for the gradient, projections, and a lam that adapts."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_equal, cases
from torch import nn

from rankreg_ext import rankreg_diagnostics, rankreg_loss, reference, use_backend
from rankreg_ext.nn import AdaptiveLam, RankReg, ScoreMemory
from rankreg_ext.reference import GRADIENT, PROJECTION

NAN, INF = float("nan"), float("inf")
VARIANTS = [v for v in itertools.product(GRADIENT, PROJECTION) if v != ("blackbox", "none")]
RAW = {"power": 1, "normalize": "none"}  # h = 1 / |P|, gradients in whole places


def tensor(*values, **kwargs):
    return torch.tensor(values, **kwargs)


def flags(text: str) -> torch.Tensor:
    """'+--' is one positive and two negatives."""
    return torch.tensor([c == "+" for c in text], dtype=torch.bool)


def run(loss, scores, positives, *args, weight=1.0, **kwargs):
    """Value and gradient of the weighted value."""
    scores = scores.detach().clone().requires_grad_()
    value = loss(scores, positives, *args, **kwargs)
    (gradient,) = torch.autograd.grad((weight * value).sum(), scores)
    return value.detach(), gradient


def lists(count=4, n=12, dtype=torch.float32, share=0.25):
    return torch.randn(count, n).to(dtype), torch.rand(count, n) < share


# --- by hand --------------------------------------------------------------------------------------


def test_two_sided_by_hand():
    # 0 has rank 3 below 1 and 0.5. Raised by 2 it has rank 1, lowered by 2 rank 4.
    scores, positives = tensor(0.0, 1.0, 0.5, -1.0), flags("+---")
    value, gradient = run(rankreg_loss, scores, positives, lam=2.0, gradient="two_sided", **RAW)
    assert value.item() == 3
    assert gradient.tolist() == [(1 - 4) / 4, (2 - 1) / 4, (3 - 2) / 4, (4 - 3) / 4]


def test_two_sided_keeps_a_leader_clear():
    # The positive leads, so nothing is gained upwards; lowered by 1 it falls behind 0.5.
    scores, positives = tensor(1.0, 0.5, -1.0), flags("+--")
    assert not run(rankreg_loss, scores, positives, lam=1.0, **RAW)[1].any()
    gradient = run(rankreg_loss, scores, positives, lam=1.0, gradient="two_sided", **RAW)[1]
    assert gradient.tolist() == [-0.5, 0.5, 0.0]


@pytest.mark.parametrize("lam", [1e-3, 1e3])
def test_identity_by_hand(lam):
    # Ranks 4 and 2 of 4, power 2: h = 2 * (4/4, 2/4) / 2, whatever lam is.
    value, gradient = run(
        rankreg_loss, tensor(0.0, 1.0, 2.0, 3.0), flags("+-+-"), lam=lam, gradient="identity"
    )
    assert value.item() == (1 + 1 / 4) / 2
    assert gradient.tolist() == [-1.0, 0.0, -0.5, 0.0]


def test_identity_moves_negatives_through_the_standardization_only():
    # Scores +-2: s = 2, b = +-1. dR/db = (-1, 0, 0, 0): its mean is -1/4, its mean along b 1/4.
    scores, positives = tensor(-2.0, 2.0, 2.0, -2.0), flags("+---")
    options = {"lam": 1.0, "gradient": "identity", **RAW}
    plain = run(rankreg_loss, scores, positives, projection="spread", **options)[1]
    assert plain.tolist() == [-1 / 2, 0, 0, 0]
    gradient = run(rankreg_loss, scores, positives, projection="standardize", **options)[1]
    assert gradient.tolist() == [(-1 + 1 / 4 + 1 / 4) / 2, 0, 0, (1 / 4 + 1 / 4) / 2]


def test_spread_by_hand():
    # s = 2: lam = 1 moves -2 by 2, past nothing but its equal; lam = 4 past everything.
    scores, positives = tensor(-2.0, 2.0, 2.0, -2.0), flags("+---")
    near, far = (
        run(rankreg_loss, scores, positives, lam=lam, projection="spread", **RAW)[1].tolist()
        for lam in (1.0, 4.0)
    )
    assert near == [0, 0, 0, 1 / 1 / 2]
    assert far == [-2 / 4 / 2, 1 / 4 / 2, 1 / 4 / 2, 1 / 4 / 2]


# --- against the specification and autograd -------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(VARIANTS))
def test_equals_the_reference_and_keeps_the_value(case, variant):
    scores, positives, where = case.scores(), case.positives(), case.where()
    options = {
        "lam": case.lam,
        "power": case.power,
        "normalize": case.normalize,
        "where": where,
        "reduction": case.reduction,
    }
    plain = rankreg_loss(scores, positives, **options)
    options |= dict(zip(("gradient", "projection"), variant, strict=True))
    actual = run(rankreg_loss, scores, positives, **options)
    expected = run(reference.rankreg_loss, scores, positives, **options)
    assert_equal(actual[0], plain)
    assert_equal(actual[1], expected[1])
    assert_equal(rankreg_loss(scores, positives, **options), plain)  # nothing to differentiate
    if where is not None:
        assert not actual[1][~where].any()


@pytest.mark.parametrize("projection", ["spread", "standardize"])
@pytest.mark.parametrize("power", [1, 2])
def test_projections_are_what_autograd_makes_of_them(projection, power):
    scores, positives = lists(dtype=torch.float64)
    where = torch.rand(scores.shape) < 0.8

    def projected(a, p):
        members = [x[w] for x, w in zip(a, where, strict=True)]
        mean = torch.stack([x.mean() for x in members]).unsqueeze(-1)
        spread = torch.stack([x.std(correction=0) for x in members]).unsqueeze(-1)
        b = a / spread.detach() if projection == "spread" else (a - mean) / spread
        return rankreg_loss(b, p, lam=1.5, power=power, where=where)

    expected = run(projected, scores, positives)
    actual = run(
        rankreg_loss, scores, positives, lam=1.5, power=power, where=where, projection=projection
    )
    assert expected[1].count_nonzero() > 4
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_two_sided_is_the_mean_of_both_sides():
    scores, positives = lists(dtype=torch.float64)
    ranks = reference.rank(scores)
    # With power 1, h is 1 / |P|, and lowering scores is raising the negated ones.
    step = 2.0 * positives / positives.sum(-1, keepdim=True).clamp(min=1)
    expected = (reference.rank(scores + step) - reference.rank(scores - step)) / (2 * 2.0)
    actual = run(
        rankreg_loss, scores, positives, lam=2.0, reduction="sum", gradient="two_sided", **RAW
    )[1]
    assert torch.equal(actual, expected)
    assert (expected != (reference.rank(scores + step) - ranks) / 2.0).any()


# --- properties -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENT)
@pytest.mark.parametrize("projection", ["spread", "standardize"])
def test_projections_know_no_scale(gradient, projection):
    scores, positives = lists(dtype=torch.float64)
    options = {"lam": 1.0, "gradient": gradient, "projection": projection}
    value, expected = run(rankreg_loss, scores, positives, **options)
    for scale in (2.0**-600, 2.0**600):  # whose squares are 0 and infinite
        for a, b in zip(
            run(rankreg_loss, scores * scale, positives, **options),
            (value, expected / scale),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("gradient", GRADIENT)
def test_standardize_changes_neither_mean_nor_spread(gradient):
    scores, positives = lists(dtype=torch.float64)
    step = run(
        rankreg_loss, scores, positives, lam=1.0, gradient=gradient, projection="standardize"
    )[1]
    assert step.any()
    centred = scores - scores.mean(-1, keepdim=True)
    torch.testing.assert_close(step.sum(-1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close((step * centred).sum(-1), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize(("gradient", "projection"), VARIANTS)
def test_factors_upstream_stay_out_of_the_perturbation(gradient, projection):
    scores, positives = lists()
    options = {"lam": 0.5, "gradient": gradient, "projection": projection}
    once = run(rankreg_loss, scores, positives, reduction="sum", **options)[1]
    scaled = run(rankreg_loss, scores, positives, weight=65536.0, reduction="sum", **options)[1]
    assert torch.equal(scaled, 65536 * once)
    mean = run(rankreg_loss, scores, positives, **options)[1]
    torch.testing.assert_close(mean, once / positives.any(-1).sum())
    weight = tensor(1.0, 0.0, -2.0, 4.0)
    each = run(rankreg_loss, scores, positives, weight=weight, reduction="none", **options)[1]
    assert torch.equal(each, weight[:, None] * once)


@pytest.mark.parametrize(("gradient", "projection"), VARIANTS)
def test_unusual_lists_leave_their_neighbours_alone(gradient, projection):
    options = {"lam": 1.0, "reduction": "none", "gradient": gradient, "projection": projection}
    good, positives = tensor(0.0, 1.0, -1.0, 0.5), flags("+--+")
    value, slope = run(rankreg_loss, good[None], positives, **options)
    for odd in ([NAN, 1, 2, 0], [0, NAN, 1, 2], [INF, -INF, 0, 1], [3e38, -3e38, 1, 0], [7] * 4):
        odd = torch.tensor(odd, dtype=torch.float32)
        values, slopes = run(rankreg_loss, torch.stack([odd, good]), positives, **options)
        assert_equal(values[1:], value)
        assert_equal(slopes[1:], slope)
        assert torch.equal(values[0].isnan(), odd[positives].isnan().any())
        assert torch.equal(slopes[0].isnan(), odd.isnan())
        assert slopes[0][~odd.isnan()].isfinite().all()


@pytest.mark.parametrize(("gradient", "projection"), VARIANTS)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_no_positive_gives_a_differentiable_zero(gradient, projection, n):
    scores = torch.randn(2, n, requires_grad=True)
    term = RankReg(gradient=gradient, projection=projection)
    value = term(scores, torch.zeros(n, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and value.requires_grad
    assert_equal(scores.grad, torch.zeros(2, n))


@pytest.mark.parametrize("projection", PROJECTION)
def test_equal_scores_count_as_spread_1(projection):
    # 0.1 is no binary fraction: a mean rounded at all would leave a spread of 1e-17.
    scores, positives = torch.full((7,), 0.1), flags("+------")
    gradient = run(rankreg_loss, scores, positives, lam=2.0, projection=projection, **RAW)[1]
    expected = torch.tensor([0.0] + [0.5] * 6)  # six are overtaken
    if projection == "standardize":
        expected = expected - 3 / 7
    torch.testing.assert_close(gradient, expected)
    one = run(rankreg_loss, tensor(3.0), flags("+"), lam=1.0, projection=projection)
    assert one[0].item() == 1 and one[1].tolist() == [0]


def test_masked_items_are_no_part_of_the_spread():
    scores, where = tensor(-2.0, 2.0, 2.0, -2.0, 1e30, NAN), flags("++++--")
    for gradient, projection in VARIANTS:
        options = {"lam": 2.5, "gradient": gradient, "projection": projection}
        _, expected = run(rankreg_loss, scores[:4], flags("+---"), **options)
        _, actual = run(rankreg_loss, scores, flags("+---+-"), where=where, **options)
        assert actual.tolist() == [*expected.tolist(), 0, 0]


def test_remembered_scores_are_part_of_the_spread():
    term = RankReg(2.0, 1.5, memory=ScoreMemory(4, keep="all"), projection="standardize")
    past = tensor(9.0, -9.0, 3.0)
    term(past, flags("---"))
    scores, positives = tensor(0.0, 1.0, 0.5, -1.0), flags("+---")
    value, gradient = run(term, scores, positives)
    _, expected = run(
        rankreg_loss,
        torch.cat([scores, past]),
        flags("+------"),
        lam=1.5,
        projection="standardize",
    )
    assert value.item() == pytest.approx(2 * (5 / 7) ** 2)  # below 9, 3, 1 and 0.5
    torch.testing.assert_close(gradient, 2 * expected[:4])


@pytest.mark.parametrize("projection", ["spread", "standardize"])
def test_diagnostics_of_a_projection(projection):
    # s = 2 and h = 1: lam = 1.5 reaches 3 units of the score, lam = 2.5 past the negatives at 2.
    scores, positives = tensor(-2.0, 2.0, 2.0, -2.0), flags("+---")
    near, far = (
        rankreg_diagnostics(scores, positives, lam=lam, projection=projection, **RAW)
        for lam in (1.5, 2.5)
    )
    assert (near.reach, near.relative_reach, near.places_gained) == (3, 1.5, 0)
    assert (far.reach, far.relative_reach, far.places_gained) == (5, 2.5, 2)
    with pytest.raises(ValueError, match=r"^rankreg_diagnostics: projection must be one of"):
        rankreg_diagnostics(scores, positives, lam=1.0, projection="all")


# --- contexts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "projection"), VARIANTS)
def test_module_is_alpha_times_the_function(gradient, projection):
    scores, positives = lists()
    where = torch.rand(scores.shape) < 0.9
    options = {"lam": 2.0, "power": 3, "gradient": gradient, "projection": projection}
    actual = run(RankReg(0.5, **options), scores, positives, where)
    for a, b in zip(
        actual, run(rankreg_loss, scores, positives, where=where, **options), strict=True
    ):
        assert torch.equal(a, 0.5 * b)
    assert f"{gradient=}, {projection=}" in repr(RankReg(0.5, **options))


@pytest.mark.parametrize(("gradient", "projection"), VARIANTS[::2])
def test_compiled_mapped_and_on_the_reference(gradient, projection):
    torch._dynamo.reset()
    scores, positives = lists()
    lam = torch.tensor(2.0)

    def loss(scores, positives):
        return rankreg_loss(scores, positives, lam=lam, gradient=gradient, projection=projection)

    def each(scores, positives):
        return run(loss, scores, positives)[1]

    expected = run(loss, scores, positives)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with use_backend("reference"):
        other = run(loss, scores, positives)
    for actual in (run(compiled, scores, positives), other):
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)
    assert torch.equal(torch.func.grad(loss)(scores, positives), expected[1])
    rows = torch.stack([each(s, p) for s, p in zip(scores, positives, strict=True)])
    mapped = torch.func.vmap(torch.func.grad(loss))(scores, positives)
    torch.testing.assert_close(mapped, rows)


@pytest.mark.parametrize(("gradient", "projection"), VARIANTS)
def test_second_derivatives_raise(gradient, projection):
    scores, positives = lists()
    scores.requires_grad_()
    loss = rankreg_loss(scores, positives, lam=1.0, gradient=gradient, projection=projection)
    (slope,) = torch.autograd.grad(loss, scores, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        slope.sum().backward()


@pytest.mark.parametrize("lam", [2.0, "adaptive"])
@pytest.mark.parametrize(("gradient", "projection"), VARIANTS)
def test_under_autocast(gradient, projection, lam):
    layer, x, positives = nn.Linear(4, 1), torch.randn(32, 4), torch.rand(32) < 0.2
    lam = AdaptiveLam() if lam == "adaptive" else lam
    term = RankReg(lam=lam, gradient=gradient, projection=projection)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(layer(x).squeeze(1), positives)
    assert value.dtype == torch.float32
    value.backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "one_sided"}, "gradient must be one of 'blackbox', .*got 'one_sided'"),
        ({"gradient": None}, "gradient must be one of .*got None"),
        ({"projection": "norm"}, "projection must be one of 'none', .*got 'norm'"),
        ({"projection": True}, "projection must be one of .*got True"),
    ],
)
def test_bad_names(options, message):
    with pytest.raises(ValueError, match=f"^RankReg: {message}"):
        RankReg(**options)
    with pytest.raises(ValueError, match=f"^rankreg_loss: {message}"):
        rankreg_loss(torch.zeros(3), flags("+--"), **options)


# --- the lam that adapts --------------------------------------------------------------------------

HAND = tensor(3.0, -3.0, 3.0, -3.0), flags("-+--")  # norm 6; rank 3 of 4: h = 2 * 3/4


def test_lam_by_hand():
    lam = AdaptiveLam(beta=0.5).eval()
    assert lam(*HAND).item() == 0.5 * 6 / 1.5
    assert lam(HAND[0] + 100, HAND[1]).item() == 2  # a shift is not a scale
    assert lam(*HAND, projection="spread").item() == pytest.approx(
        0.5 * 2 / 1.5
    )  # norm of four times +-1
    assert lam(*HAND, power=1).item() == 0.5 * 6 / 1
    assert lam(*HAND, normalize="none").item() == 0.5 * 6 / 6
    # Pooled over the lists with a positive; the other's scores do not matter.
    scores = torch.stack([HAND[0], 1e3 * HAND[0], HAND[0]])
    positives = torch.stack([HAND[1], flags("----"), HAND[1]])
    assert lam(scores, positives).item() == pytest.approx(0.5 * 6 * 2**0.5 / (1.5 * 2**0.5))
    # Masked, infinite and NaN scores are no part of the norm.
    more = torch.cat([HAND[0], tensor(1e6, NAN, -INF)])
    where = flags("++++-++")
    expected = 0.5 * 6 / (2 * 3 / 6)
    assert lam(more, flags("-+-----"), where).item() == pytest.approx(expected)


def test_lam_follows_the_scale_of_the_scores():
    scores, positives = lists(dtype=torch.float64)
    term = RankReg(lam=AdaptiveLam(beta=0.3)).eval()
    _, expected = run(term, scores, positives)
    for scale in (2.0**-30, 2.0**30):
        assert torch.equal(run(term, scale * scores, positives)[1], expected / scale)
    assert expected.any()


@pytest.mark.parametrize("gradient", ["blackbox", "two_sided"])
@pytest.mark.parametrize("projection", PROJECTION)
def test_is_the_loss_with_that_lam(gradient, projection):
    scores, positives = lists()
    options = {"gradient": gradient, "projection": projection}
    term = RankReg(1.0, AdaptiveLam(beta=0.2), **options)
    lam = term.lam.eval()(scores, positives, **options)
    actual = run(term.train(), scores, positives)
    for a, b in zip(actual, run(rankreg_loss, scores, positives, lam=lam, **options), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("projection", PROJECTION)
def test_beta_steps_towards_the_target(projection):
    # lam = 6/1.5 * beta moves -3 by 6 * beta: past its equal from the start, past 3 if beta > 1.
    lam = AdaptiveLam(beta=0.5, target=2.0, step=0.5, decay=0.75)
    ema, beta = 2.0, 0.5
    for _ in range(8):
        entries = 4 if beta > 1 else 1  # 3, 3, -3 and itself; or -3 alone, which it only leaves
        lam(*HAND, projection=projection)
        ema = 0.75 * ema + 0.25 * entries
        beta = beta * 1.5 if ema < 2 else beta / 1.5
        assert lam.ema.item() == pytest.approx(ema)
        assert lam.beta.item() == pytest.approx(beta)
    assert beta != 0.5


def test_additive_steps_and_limits():
    lam = AdaptiveLam(beta=0.5, target=2.0, step=0.25, additive=True)
    lam(*HAND)
    assert lam.beta.item() == 0.75
    for target, end in ((1e9, 2.0**20), (1e-9, 2.0**-20)):
        lam = AdaptiveLam(target=target, step=2e6, additive=True)
        lam(*HAND)
        assert lam.beta.item() == end


@pytest.mark.parametrize("target", [3.0, 12.0])
def test_reaches_its_target(target):
    lam = AdaptiveLam(target=target, step=0.05)
    counts = []
    for _ in range(300):
        scores, positives = lists(8, 64, share=0.05)
        term = RankReg(1.0, lam, reduction="sum")
        counts.append(
            run(term, 30 * scores, positives)[1].count_nonzero() / positives.any(-1).sum()
        )
    assert torch.stack(counts[200:]).mean().item() == pytest.approx(target, rel=0.25)


@pytest.mark.parametrize(
    ("text", "gradient"),
    [("----", "blackbox"), ("+-+-", "blackbox"), ("----", "two_sided"), ("-+--", "identity")],
)
def test_calls_that_say_nothing_leave_the_state(text, gradient):
    # No positive; every positive leads; lam is not used at all.
    term = RankReg(lam=AdaptiveLam(step=0.5), gradient=gradient)
    before = copy.deepcopy(term.state_dict())
    value, slope = run(term, HAND[0], flags(text))
    assert_equal(term.state_dict()["lam.beta"], before["lam.beta"])
    assert_equal(term.state_dict()["lam.ema"], before["lam.ema"])
    assert value.isfinite() and slope.any().item() == (gradient == "identity")
    assert 0 < term.lam(HAND[0], flags(text), gradient=gradient).item() < INF
    if gradient != "identity":
        term(*HAND)
        assert term.lam.beta != 1


def test_nan_scores_leave_the_state_finite():
    term = RankReg(lam=AdaptiveLam())
    for scores in ([NAN, NAN, 0.0, 1.0], [NAN] * 4, [0.0, NAN, INF, -INF], [1.0] * 4):
        for n in (4, 0):
            assert not term(torch.tensor(scores[:n]), flags("++--")[:n]).isinf()
        assert term.lam.beta.isfinite() and term.lam.ema.isfinite()


def test_is_frozen_in_eval_mode_and_part_of_the_state():
    term = RankReg(lam=AdaptiveLam(0.25, target=3.0), memory=ScoreMemory(8, keep="all"))
    batches = [(torch.randn(16), torch.rand(16) < 0.3) for _ in range(4)]
    for batch in batches[:2]:
        term(*batch)
    state = copy.deepcopy(term.state_dict())
    assert state["lam.beta"] != 0.25 and state["lam.ema"] != 3
    term.eval()(*batches[2])
    assert all(torch.equal(v, state[k]) for k, v in term.state_dict().items())
    other = RankReg(lam=AdaptiveLam(target=3.0), memory=ScoreMemory(8, keep="all"))
    other.load_state_dict(state)
    for batch in batches[2:]:
        for a, b in zip(run(other, *batch), run(term.train(), *batch), strict=True):
            assert torch.equal(a, b)
    assert "lam=" not in term.extra_repr() and "target=3.0, step=0.01, decay=0.9" in repr(term)


def test_adapts_in_compiled_code():
    torch._dynamo.reset()
    term = RankReg(lam=AdaptiveLam(step=0.5), gradient="two_sided")
    same = copy.deepcopy(term)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(same, fullgraph=True, backend=counter)
    for _ in range(3):
        batch = lists()
        for a, b in zip(run(compiled, *batch), run(term, *batch), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1 and term.lam.beta != 1
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in term.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 0.0}, ValueError, "beta must be within .*got 0.0"),
        ({"beta": NAN}, ValueError, "beta must be within .*got nan"),
        ({"beta": "1"}, TypeError, "beta must be a number .*got str"),
        ({"target": 0}, ValueError, "target must be positive and finite, got 0"),
        ({"target": INF}, ValueError, "target must be positive and finite, got inf"),
        ({"step": -0.1}, ValueError, "step must be positive and finite, got -0.1"),
        ({"step": True}, TypeError, "step must be a number .*got bool"),
        ({"decay": 1.0}, ValueError, "decay must be at least 0 and below 1, got 1.0"),
        ({"additive": 1}, TypeError, "additive must be a bool, got 1"),
    ],
)
def test_bad_adaptive_settings(options, error, message):
    with pytest.raises(error, match=f"^AdaptiveLam: {message}"):
        AdaptiveLam(**options)


def test_bad_adaptive_input():
    lam = AdaptiveLam()
    with pytest.raises(TypeError, match=r"^AdaptiveLam: positives must have dtype torch\.bool"):
        lam(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^AdaptiveLam: gradient must be one of"):
        lam(torch.zeros(3), flags("+--"), gradient="none")
    with pytest.raises(ValueError, match=r"^AdaptiveLam: scores must be on the device of"):
        lam(torch.zeros(3, device="meta"), flags("+--").to("meta"))
