"""rankreg_diagnostics describes the gradient that rankreg_loss really has."""

import math

import pytest
import torch
from hypothesis import given, settings
from samples import assert_equal, cases

from rankreg_ext import positive_ranks, rankreg_diagnostics, rankreg_loss
from rankreg_ext.diagnostics import RankRegDiagnostics
from rankreg_ext.reference import compute_dtype

NAN = float("nan")


def flags(text: str) -> torch.Tensor:
    """'+--' is one positive and two negatives."""
    return torch.tensor([c == "+" for c in text], dtype=torch.bool)


def share(items: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return (items & of).sum(-1).double() / of.sum(-1)


# Lists without NaN, and a lam at which no gradient under- or overflows.
@settings(max_examples=400)
@given(cases().filter(lambda c: c.values != "special" and 1e-3 <= c.lam <= 1e4))
def test_is_about_the_actual_gradient(case):
    scores, positives, where = case.scores(), case.positives(), case.where()
    arguments = {"lam": case.lam, "power": case.power, "normalize": case.normalize, "where": where}
    found = rankreg_diagnostics(scores, positives, **arguments)
    assert all(value.shape == scores.shape[:-1] for value in found)

    # Half precision is perturbed in float32; its gradient is this one, cast.
    leaf = scores.to(compute_dtype(scores.dtype)).clone().requires_grad_()
    rankreg_loss(leaf, positives, reduction="sum", **arguments).backward()
    present = torch.ones_like(positives) if where is None else where
    live, negatives = positives & present, ~positives & present
    assert_equal(found.positives, live.sum(-1))
    assert_equal(found.zero_share, share(leaf.grad == 0, live))
    assert_equal(found.negative_share, share(leaf.grad != 0, negatives))

    # places = -gradient * Z * lam, whole numbers but for the rounding of the gradient.
    length = present.sum(-1, keepdim=True) if case.normalize == "length" else 1
    places = (-leaf.grad.double() * length * case.lam * live).round().sum(-1)
    assert_equal(found.places_gained, places / live.sum(-1))

    ranks = torch.where(live, positive_ranks(scores, positives, where=where), 0).double()
    assert_equal(found.mean_rank, ranks.sum(-1) / live.sum(-1))
    some = live.any(-1)
    if case.n:
        assert_equal(found.worst_rank, torch.where(some, ranks.amax(-1), torch.nan))


def test_by_hand():
    # Ranks 3 and 5 of 6: h = 2 * (r / 6) / 2, so 1/2 and 5/6; with lam = 1.2 they move by 0.6, 1.0.
    scores = torch.tensor([4.0, 3.5, 3.0, 2.5, 2.0, -1.0], dtype=torch.float64)
    found = rankreg_diagnostics(scores, flags("--+-+-"), lam=1.2)
    assert found.positives == 2 and found.positives.dtype == torch.int64
    assert found.mean_rank == 4 and found.worst_rank == 5
    # 3.0 -> 3.6 gains one place; 2.0 -> 3.0 gains one, past 2.5; neither passes 4.
    assert found.places_gained == 1 and found.zero_share == 0 and found.top_share == 0
    assert found.negative_share == 2 / 4  # 3.5 and 2.5
    assert found.reach.item() == pytest.approx(0.8)
    assert found.relative_reach.item() == pytest.approx(0.8 / scores.std(correction=0).item())


@pytest.mark.parametrize(
    ("lam", "zero_share", "top_share", "gained"),
    [(0.1, 1, 0, 0), (1.0, 0, 0, 2), (1e4, 0, 1, 6)],
)
def test_tells_too_small_from_too_large(lam, zero_share, top_share, gained):
    # One positive 2 below the next of ten negatives in steps of 0.5, six of them above it.
    scores = torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0, 0.5, -0.25, -1.0, -2.0, -3.0, -4.0])
    found = rankreg_diagnostics(scores, flags("------+----"), lam=lam)
    assert found.mean_rank == 7
    assert (found.zero_share, found.top_share, found.places_gained) == (
        zero_share,
        top_share,
        gained,
    )


def test_nothing_to_gain():
    found = rankreg_diagnostics(torch.tensor([4.0, 3.0, 1.0, 0.0]), flags("++--"), lam=1e3)
    assert found.worst_rank == found.positives == 2
    assert found.negative_share == 0 and found.top_share == 0


def test_several_lists_and_a_mask():
    scores, positives = torch.randn(3, 2, 16), torch.rand(3, 2, 16) < 0.4
    where = torch.arange(16) < 12
    found = rankreg_diagnostics(scores, positives, lam=2.0, where=where)
    for i in range(3):
        for j in range(2):
            alone = rankreg_diagnostics(scores[i, j, :12], positives[i, j, :12], lam=2.0)
            for several, one in zip(found, alone, strict=True):
                torch.testing.assert_close(several[i, j], one, rtol=1e-12, atol=0, equal_nan=True)


def test_tensor_lam():
    scores, positives = torch.randn(40), torch.rand(40) < 0.3
    expected = rankreg_diagnostics(scores, positives, lam=0.3)
    for value, other in zip(
        rankreg_diagnostics(scores, positives, lam=torch.tensor(0.3)), expected, strict=True
    ):
        assert_equal(value, other)


@pytest.mark.parametrize("shape", [(4,), (0,), (2, 0), (0, 3)])
def test_no_positive(shape):
    scores = torch.zeros(shape)
    found = rankreg_diagnostics(scores, scores > 1, lam=1.0)
    assert not found.positives.any()
    for name in ("mean_rank", "worst_rank", "zero_share", "places_gained", "top_share", "reach"):
        value = getattr(found, name)
        assert value.shape == shape[:-1] and value.isnan().all()


def test_nan_shows_where_a_positive_has_it():
    scores = torch.tensor([1.0, NAN, 0.0, 2.0])
    assert rankreg_diagnostics(scores, flags("++--"), lam=1.0).mean_rank.isnan()
    found = rankreg_diagnostics(scores, flags("+---"), lam=1.5)
    assert found.mean_rank == 2 and found.negative_share == 1 / 3 and found.relative_reach.isnan()


def test_text_has_a_line_per_figure():
    found = rankreg_diagnostics(torch.tensor([0.25, 0.0, 1.0, 0.5]), flags("+---"), lam=0.25)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == list(RankRegDiagnostics._fields)
    assert lines[0].split() == ["positives", "1"] and lines[1].split() == ["mean_rank", "3"]
    assert dict(map(str.split, lines))["reach"] == "0.375"
    many = rankreg_diagnostics(torch.zeros(20, 3), flags("+--"), lam=1.0)
    assert str(many).splitlines()[0].endswith("1, 1, 1, 1, 1, 1, 1, 1, ...")


def test_nothing_is_modified_differentiated_or_read_on_the_host():
    torch._dynamo.reset()
    scores, positives = torch.randn(3, 20).requires_grad_(), torch.rand(3, 20) < 0.4
    before = scores.detach().clone(), positives.clone()
    expected = rankreg_diagnostics(scores, positives, lam=2.0)
    compiled = torch.compile(rankreg_diagnostics, fullgraph=True, backend="eager")
    for a, b in zip(compiled(scores, positives, lam=2.0), expected, strict=True):
        assert_equal(a, b)
    assert not any(value.requires_grad for value in expected)
    assert torch.equal(scores.detach(), before[0]) and torch.equal(positives, before[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scores": [1.0]}, TypeError, "scores must be a torch.Tensor, got list"),
        ({"scores": torch.zeros(2, dtype=torch.int32)}, TypeError, "scores must have dtype"),
        ({"scores": torch.tensor(0.0)}, ValueError, "scores must have at least 1 dimension"),
        ({"positives": torch.tensor([1, 0])}, TypeError, "positives must have dtype torch.bool"),
        ({"positives": flags("+--")}, ValueError, r"positives must be broadcastable .*\(3,\)"),
        ({"where": torch.ones(2)}, TypeError, "where must have dtype torch.bool"),
        ({"lam": 0.0}, ValueError, "lam must be positive and finite, got 0.0"),
        ({"lam": math.inf}, ValueError, "lam must be positive and finite, got inf"),
        ({"lam": "5"}, TypeError, "lam must be a float .*got str"),
        ({"power": 0}, ValueError, "power must be an integer of at least 1, got 0"),
        ({"normalize": "max"}, ValueError, "normalize must be one of .*got 'max'"),
    ],
)
def test_bad_input(arguments, error, message):
    good = {"scores": torch.zeros(2), "positives": flags("+-"), "lam": 1.0}
    with pytest.raises(error, match=f"^rankreg_diagnostics: {message}"):
        rankreg_diagnostics(**{**good, **arguments})
