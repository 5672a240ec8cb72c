"""Rare positives of long lists, in Triton's interpreter: equal to the reference.

Bounds are made so small that lists of some hundred items have many tiles, blocks and chunks.
"""

from __future__ import annotations

import dataclasses
import itertools

import interpreter  # noqa: F401
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samples import FLOATS, LAYOUTS, Case, assert_equal, cases, laid_out

from rankreg_ext import _ops
from rankreg_ext.triton_kernels import loss_sum, tuning
from rankreg_ext.triton_kernels import positives_stream as stream

BOUNDS = {
    # A block a tile, one chunk or several shares of them, all of one kind of search.
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
    lengths = st.one_of(st.integers(0, 40), st.sampled_from((63, 64, 65, 127, 128, 129, 300)))

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
    drawn(check_ranks, 40)()


def test_drawn_losses(bounds):
    drawn(check_loss, 30)()
