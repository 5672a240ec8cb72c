"""Hinge violations by pairs and along the sorted list, in the interpreter."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rankreg_ext.triton_kernels import hinge_violations as kernels
from rankreg_ext.triton_kernels import host, tuning
from samples import Case, assert_equal, cases, laid_out

from rankreg_ext import _ops, reference
from rankreg_ext.reference import compute_dtype

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, on overflow

WAYS = {
    "pairs": {},
    "sorted": {"HINGE_MOST": 0, "HINGE_BLOCK": 32, "HINGE_CHUNKS": 64},
    "sorted, long chunks": {"HINGE_MOST": 0, "HINGE_BLOCK": 16, "HINGE_CHUNKS": 2},
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(tuning, "HINGE_PROGRAMS", 2)
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(tuning, name, value)


def check(case: Case, delta: float, tensor: bool) -> None:
    scores, where = case.scores(), case.where()
    positives = laid_out(case.positives(), case.layout)
    delta_tensor = torch.tensor(delta) if tensor else None
    args = (scores, positives, 7.0 if tensor else delta, delta_tensor, where)
    q = kernels.hinge_violations(*args)
    expected = reference.hinge_violations(scores, positives, delta, where)
    epsilon = torch.finfo(q.dtype).eps
    torch.testing.assert_close(
        q, expected, rtol=(16 if q.dtype == torch.float64 else 1) * epsilon, atol=0, equal_nan=True
    )
    assert q.is_contiguous()
    # In quarters sums are exact, whatever their order.
    grad = (case.upstream().nan_to_num(0, 1, -1) * 4).round() / 4
    grad = laid_out(grad.to(compute_dtype(case.dtype)), case.layout)
    gradient = kernels.hinge_violations_backward(grad, *args)
    expected = reference.hinge_violations_backward(grad, scores, positives, delta, where)
    assert_equal(gradient, expected)
    assert gradient.is_contiguous()


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    cases(),
    st.one_of(st.integers(0, 40), st.sampled_from((63, 64, 65))),
    st.sampled_from((0.0, 0.25, 1.0, 1e30)),
    st.booleans(),
)
def test_drawn_cases(way, case, n, delta, tensor):
    check(dataclasses.replace(case, n=n, ties="min"), delta, tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_lengths_around_blocks(way, dtype):
    for n in (1, 15, 16, 17, 65):
        case = Case(
            seed=n, batch=(2,), n=n, dtype=dtype, values="special", layout="strided",
            mask="random", share=0.4, ties="min", descending=True, lam=1.0, power=1,
            normalize="none", reduction="none", gradient="dense",
        )  # fmt: skip
        check(case, 0.5, False)


def test_infinite_gradients_and_a_nan_delta(way):
    scores, positives = torch.randn(40), torch.arange(40) % 3 == 0
    grad = torch.where(torch.arange(40) % 2 == 0, torch.inf, 1.0)
    for delta in (0.5, float("nan")):
        args = (scores, positives, 0.0, torch.tensor(delta), None)
        assert_equal(
            kernels.hinge_violations_backward(grad, *args),
            _ops._hinge_violations_backward(grad, *args),
        )
    assert not kernels.hinge_violations(*args).any()


def test_one_launch_or_three(monkeypatch):
    names, launch = [], host.launch

    def recorded(kernel, *args, **options):
        names.append(kernel.__name__)
        launch(kernel, *args, **options)

    monkeypatch.setattr(host, "launch", recorded)
    scores = torch.randn(3, 40)
    args = (scores, scores > 0, 0.5, None, None)
    kernels.hinge_violations(*args)
    kernels.hinge_violations_backward(scores, *args)
    assert names == ["hinge_kernel", "hinge_backward_kernel"]
    names.clear()
    monkeypatch.setattr(tuning, "HINGE_MOST", 39)
    kernels.hinge_violations(*args)
    kernels.hinge_violations_backward(scores, *args)
    assert names == [
        "count_kernel", "step_kernel", "q_kernel", "total_kernel", "prefix_kernel",
        "gradient_kernel",
    ]  # fmt: skip
