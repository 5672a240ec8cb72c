"""Rare positives of long lists, in Triton's interpreter: equal to the reference.

Bounds are made so small that lists of some hundred items have many tiles, blocks and chunks.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rankreg_ext.triton_kernels import positives_stream as stream
from rankreg_ext.triton_kernels import tuning
from samples import FLOATS, LAYOUTS, Case, assert_equal, cases, laid_out

from rankreg_ext import _ops

BOUNDS = {
    # A block a tile, and several shares of chunks.
    "tiles": dict(BLOCK=32, TILES=32, PROGRAMS=10**6, CHUNK_PROGRAMS=3, NARROW=4, CHUNK=16),
    # Several blocks a tile.
    "blocks": dict(BLOCK=32, TILES=4, PROGRAMS=10**6, CHUNK_PROGRAMS=1, NARROW=8, CHUNK=32),
    # As many lists as fill a GPU.
    "lists": dict(BLOCK=16, TILES=32, PROGRAMS=1, CHUNK_PROGRAMS=2, NARROW=4, CHUNK=32),
}
FEW = {"tiles": (2, 2), "blocks": (4, 2), "lists": (2, 1)}


@pytest.fixture(params=BOUNDS)
def bounds(request, monkeypatch):
    for name, value in BOUNDS[request.param].items():
        monkeypatch.setattr(tuning, f"STREAM_{name}", value)
    few, few_backward = FEW[request.param]
    monkeypatch.setattr(tuning, "STREAM_FEW", few)
    monkeypatch.setattr(tuning, "STREAM_FEW_BACKWARD", few_backward)
    # What the state keeps is bounded in _ops, and part of the ops' shapes.
    monkeypatch.setattr(_ops, "STATE_CAPACITY", 6)
    return request.param


def lam_of(case: Case, tensor: bool) -> tuple:
    return (1.0, torch.tensor(case.lam)) if tensor else (case.lam, None)


def positives_of(case: Case, count: int | None) -> torch.Tensor:
    """Of the case's share, or about ``count`` a list."""
    if count is None:
        return case.positives()
    g = case.generator().manual_seed(case.seed + 4)
    return torch.rand(*case.batch, case.n, generator=g) < count / max(case.n, 1)


def check_ranks(case: Case, tensor: bool, count: int | None = None) -> None:
    scores, where, positives = case.scores(), case.where(), positives_of(case, count)
    positives = laid_out(positives, case.layout)
    lam = lam_of(case, tensor)
    ranks = stream.positive_ranks(scores, positives, *lam, where)
    assert_equal(ranks, _ops._positive_ranks(scores, positives, *lam, where))
    assert ranks.is_contiguous()
    grad = laid_out(dataclasses.replace(case, ties="min").upstream(), case.layout)
    args = (grad, scores, positives, ranks, *lam, where)
    actual = stream.positive_ranks_backward(*args)
    assert_equal(actual, _ops._positive_ranks_backward(*args))
    assert actual.is_contiguous()


def check_loss(case: Case, tensor: bool, count: int | None = None) -> None:
    scores, where, positives = case.scores(), case.where(), positives_of(case, count)
    lam = lam_of(case, tensor)
    normalize, reduction = (
        _ops.NORMALIZE.index(case.normalize),
        _ops.REDUCTION.index(case.reduction),
    )
    args = (scores, positives, *lam, case.power, normalize, where)
    loss, state = stream.rankreg_loss(*args, reduction)
    expected, expected_state = _ops._rankreg_loss(*args, reduction)
    eps = 4 * torch.finfo(loss.dtype).eps
    torch.testing.assert_close(loss, expected, rtol=eps, atol=0, equal_nan=True)
    if scores.numel():
        assert_equal(state, expected_state)
    assert state.shape == expected_state.shape and state.is_contiguous()

    g = case.generator().manual_seed(case.seed + 5)
    grad = torch.randn(loss.shape, generator=g, dtype=torch.float64).to(loss.dtype)
    if case.gradient == "special":
        grad = torch.tensor(float("inf"), dtype=loss.dtype).expand(loss.shape)
    args = (grad, scores, positives, state, *lam, case.power, normalize, where)
    assert_equal(stream.rankreg_loss_backward(*args), _ops._rankreg_loss_backward(*args))


def drawn(check, examples: int):
    lengths = st.one_of(st.integers(0, 40), st.sampled_from((63, 64, 65, 127, 128, 129, 200)))

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(cases(), lengths, st.booleans(), st.sampled_from((None, None, 1, 3, 7, 12)))
    def run(case, n, tensor, count):
        check(dataclasses.replace(case, n=n), tensor, count)

    return run


def test_drawn_ranks(bounds):
    drawn(check_ranks, 12)()


def test_drawn_losses(bounds):
    drawn(check_loss, 10)()


PLAIN = Case(
    seed=3,
    batch=(),
    n=300,
    dtype=torch.float32,
    values="tied",
    layout="contiguous",
    mask=None,
    share=0.3,
    ties="min",
    descending=True,
    lam=0.3,
    power=2,
    normalize="length",
    reduction="mean",
    gradient="dense",
)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_positives(bounds, dtype):
    """More than a chunk has room for, and than the state keeps, up to all."""
    mask, values, share = (None, "tied", 1.0) if dtype.itemsize > 2 else ("random", "special", 0.5)
    case = dataclasses.replace(
        PLAIN, dtype=dtype, mask=mask, values=values, share=share, n=50, gradient="special"
    )
    check_ranks(case, False)
    check_loss(case, True)


@pytest.mark.parametrize("bounds", ["tiles"], indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(bounds, layout):
    case = dataclasses.replace(PLAIN, layout=layout, batch=(2,), n=97, mask="row", share=0.05)
    check_ranks(case, False)
    check_loss(case, False)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 15, 16, 31])
def test_every_number_of_positives(bounds, count):
    """Both sides of every bound: few, narrow, and full chunks."""
    g = torch.Generator().manual_seed(count)
    scores = (torch.randn(1, 70, generator=g) * 3).round() / 3
    positives = torch.zeros(1, 70, dtype=torch.bool)
    for row in positives:
        row[torch.randperm(70, generator=g)[:count]] = True
    grad = torch.randn(1, 70, generator=g)
    ranks = stream.positive_ranks(scores, positives, 0.5, None, None)
    assert_equal(ranks, _ops._positive_ranks(scores, positives, 0.5, None, None))
    args = (grad, scores, positives, ranks, 0.5, None, None)
    assert_equal(stream.positive_ranks_backward(*args), _ops._positive_ranks_backward(*args))
    args = (scores, positives, 40.0, None, 2, 0, None)
    loss, state = stream.rankreg_loss(*args, 1)
    expected, expected_state = _ops._rankreg_loss(*args, 1)
    torch.testing.assert_close(loss, expected, rtol=5e-7, atol=0)
    assert_equal(state, expected_state)
    args = (torch.tensor(1.7), scores, positives, state, *args[2:])
    assert_equal(stream.rankreg_loss_backward(*args), _ops._rankreg_loss_backward(*args))


@pytest.mark.parametrize("count", [5, 40, 300])
def test_bounds_as_they_are(count):
    case = dataclasses.replace(PLAIN, n=5000, mask="random", values="clustered")
    check_ranks(case, False, count)
    check_loss(case, False, count)


def test_ranks_beyond_float32(monkeypatch):
    """A rank of more than 2^24 is a float64, and none is rounded."""
    # As long as tensors may be.
    monkeypatch.setattr(tuning, "STREAM_BLOCK", 2**19)
    monkeypatch.setattr(tuning, "STREAM_FEW", 2)
    monkeypatch.setattr(tuning, "STREAM_FEW_BACKWARD", 2)
    n = 2**24 + 3
    scores = torch.ones(n)
    scores[7] = 0
    positives = torch.zeros(n, dtype=torch.bool)
    positives[7] = True
    ranks = stream.positive_ranks(scores, positives, 2.0, None, None)
    assert ranks.dtype == torch.float64
    assert ranks[7] == n and ranks.count_nonzero() == 1
    grad = torch.zeros(n, dtype=torch.float64)
    grad[7] = 1
    actual = stream.positive_ranks_backward(grad, scores, positives, ranks, 2.0, None, None)
    expected = torch.full([n], 0.5)
    expected[7] = torch.tensor(1.0 - n, dtype=torch.float64).float() / 2
    assert_equal(actual, expected)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3000)])
def test_empty(shape):
    x, positives = torch.empty(shape), torch.empty(shape, dtype=torch.bool)
    ranks = stream.positive_ranks(x, positives, 1.0, None, None)
    args = (x, x, positives, ranks, 1.0, None, None)
    assert ranks.shape == stream.positive_ranks_backward(*args).shape == shape
    for reduction, name in enumerate(_ops.REDUCTION):
        args = (x, positives, 1.0, None, 2, 1, None)
        loss, state = stream.rankreg_loss(*args, reduction)
        assert_equal(loss, torch.zeros(shape[:-1] if name == "none" else ()))
        args = (loss, x, positives, state, *args[2:])
        assert stream.rankreg_loss_backward(*args).shape == shape
