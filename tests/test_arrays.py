"""The functions for NumPy arrays, against the specification on tensors of the same numbers."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rankdata import assert_equal, lay_out

from rankreg_ext import _backend, arrays, reference, use_backend
from rankreg_ext.reference import TIES

FLOATS = ("e", "f", "d")
INTEGERS = tuple("?bBhHiIlLqQ")
LAYOUTS = ("contiguous", "fortran", "reversed", "strided", "expanded", "misaligned", "read-only")
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0)
native = pytest.mark.skipif(_backend.usable("cpu") is not None, reason="no native library")

shapes = st.sampled_from(
    (
        (0,),
        (1,),
        (2,),
        (9,),
        (33,),
        (97,),
        (129,),
        (300,),
        (0, 4),
        (3, 0),
        (2, 0, 3, 4),
        (3, 17),
        (2, 3, 5),
    )
)


def numbers(rng, shape, dtype, special):
    x = rng.integers(-3, 4, shape)
    if np.dtype(dtype).kind in "bu":
        x = np.abs(x)
    x = x.astype(dtype)
    if special and np.dtype(dtype).kind == "f":
        x[...] = rng.choice(SPECIAL, shape)
    elif np.dtype(dtype).kind == "f":
        x += rng.standard_normal(shape).astype(dtype)
    return x


def mask(rng, shape, share, layout):
    return None if share is None else lay_out(rng.random(shape) < share, layout)


def tensor(x):
    return None if x is None else torch.from_numpy(np.array(x, order="C").view(x.dtype.str))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=shapes,
    dtype=st.sampled_from((*FLOATS, *INTEGERS, ">f4", ">i8")),
    special=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    ties=st.sampled_from(TIES),
    descending=st.booleans(),
    where=st.sampled_from((None, 0.0, 0.7, 1.0)),
    axis=st.sampled_from((-1, 0, 1)),
)
@settings(max_examples=400)
def test_rank(seed, shape, dtype, special, layout, ties, descending, where, axis):
    rng = np.random.default_rng(seed)
    x = lay_out(numbers(rng, shape, dtype, special), layout)
    axis = min(axis, x.ndim - 1)
    where = mask(rng, x.shape, where, layout if layout != "expanded" else "reversed")
    plain = x.astype(x.dtype.newbyteorder("="))
    expected = reference.rank(
        tensor(plain), axis, descending=descending, ties=ties, where=tensor(where)
    )
    got = arrays.rank(x, axis, descending=descending, ties=ties, where=where)
    assert_equal(got, expected.numpy())
    with use_backend("reference"):
        assert_equal(
            arrays.rank(x, axis, descending=descending, ties=ties, where=where), expected.numpy()
        )


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=shapes,
    dtype=st.sampled_from((*FLOATS, ">f8")),
    special=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    share=st.sampled_from((0.0, 0.05, 0.5, 1.0)),
    where=st.sampled_from((None, 0.0, 0.7)),
    lam=st.sampled_from((0.1, 1, 5.0)),
    power=st.sampled_from((1, 2, 3)),
    normalize=st.sampled_from(("length", "none")),
    reduction=st.sampled_from(("mean", "sum", "none")),
)
@settings(max_examples=400)
def test_positives(
    seed, shape, dtype, special, layout, share, where, lam, power, normalize, reduction
):
    rng = np.random.default_rng(seed)
    x = lay_out(numbers(rng, shape, dtype, special), layout)
    positives = mask(rng, x.shape, share, "strided")
    where = mask(rng, x.shape, where, "reversed")
    plain = tensor(x.astype(x.dtype.newbyteorder("=")))
    expected = reference.positive_ranks(plain, tensor(positives), where=tensor(where))

    options = {"lam": lam, "power": power, "normalize": normalize, "reduction": reduction}
    scores = plain.requires_grad_()
    loss = reference.rankreg_loss(scores, tensor(positives), where=tensor(where), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    loss = loss.detach().numpy()

    def assert_loss(value):
        if reduction == "none":
            return assert_equal(np.asarray(value), loss)
        # The sum over lists may be added in another order.
        assert value.dtype == loss.dtype
        np.testing.assert_allclose(value, loss, rtol=4 * np.finfo(loss.dtype).eps, atol=0)

    for backend in ("auto", "reference"):
        with use_backend(backend):
            assert_equal(arrays.positive_ranks(x, positives, where=where), expected.numpy())
            value = arrays.rankreg_loss(x, positives, where=where, **options)
            assert_loss(value)
            value, got = arrays.rankreg_loss(x, positives, where=where, gradient=True, **options)
            assert_loss(value)
            assert isinstance(value, np.ndarray if loss.ndim else np.floating)
            assert_equal(got, gradient.numpy())


def test_masks_broadcast_and_lists_are_taken():
    scores = np.array([[0.3, 0.1, 0.7], [0.2, 0.9, 0.4]], "f")
    one = np.array([True, False, True])
    both = np.broadcast_to(one, scores.shape).copy()
    assert_equal(arrays.rank(scores, where=one), arrays.rank(scores, where=both))
    assert_equal(
        arrays.positive_ranks(scores, one, where=both[:1]),
        arrays.positive_ranks(scores, both, where=both),
    )
    assert arrays.rankreg_loss(scores, one) == arrays.rankreg_loss(scores, both)
    assert_equal(arrays.rank([[3, 1], [1, 1]]), np.array([[1, 2], [1, 1]], "f"))
    assert_equal(arrays.positive_ranks([0.5, 0.7], [True, False]), np.array([2, 0], np.float64))


@pytest.mark.parametrize("positives", [700, 300, 3])
def test_more_positives_than_the_state_keeps(positives, threads):
    rng = np.random.default_rng(0)
    x, p = rng.standard_normal((5, 20_000)).astype("f"), np.zeros((5, 20_000), bool)
    p[:, rng.choice(20_000, positives, replace=False)] = True
    scores = torch.from_numpy(x).requires_grad_()
    expected = reference.rankreg_loss(scores, torch.from_numpy(p), lam=0.5)
    (gradient,) = torch.autograd.grad(expected, scores)
    for count in (1, 3):
        threads(count)
        loss, got = arrays.rankreg_loss(x, p, lam=0.5, gradient=True)
        assert loss == expected.item()
        assert_equal(got, gradient.numpy())


X, P = np.array([[0.3, 0.1, 0.7], [0.2, 0.9, 0.4]]), np.array([[True, False, False]] * 2)
CALLS = {
    "rank": lambda x=X, where=None, **k: arrays.rank(x, where=where, **k),
    "positive_ranks": lambda x=X, positives=P, where=None: arrays.positive_ranks(
        x, positives, where=where
    ),
    "rankreg_loss": lambda x=X, positives=P, where=None, **k: arrays.rankreg_loss(
        x, positives, where=where, **k
    ),
}
BAD = [
    *((f, {"x": X.astype("F")}, TypeError, ("dtype", "float32", "complex64")) for f in CALLS),
    *((f, {"x": X.astype("g")}, TypeError, ("dtype", "float64", str(X.astype("g").dtype)))
      for f in CALLS),
    *((f, {"x": ["a", "b"]}, TypeError, ("dtype", "<U1")) for f in CALLS),
    *((f, {"x": np.float64(1)}, ValueError, ("at least 1 dimension", "0-dim")) for f in CALLS),
    *((f, {"where": X}, TypeError, ("where", "bool", "float64")) for f in CALLS),
    *((f, {"where": P[:, :2]}, ValueError, ("where", "(2, 3)", "(2, 2)")) for f in CALLS),
    *((f, {"where": P[None]}, ValueError, ("where", "(2, 3)", "(1, 2, 3)")) for f in CALLS),
    *((f, {"x": X.astype("l")}, TypeError, ("scores", "float64", "int64"))
      for f in ("positive_ranks", "rankreg_loss")),
    *((f, {"positives": P.astype(int)}, TypeError, ("positives", "int64", "labels == 1"))
      for f in ("positive_ranks", "rankreg_loss")),
    *((f, {"positives": None}, TypeError, ("positives", "bool"))
      for f in ("positive_ranks", "rankreg_loss")),
    ("rank", {"ties": "first"}, ValueError, ("ties", "'min'", "'first'")),
    ("rank", {"axis": 2}, ValueError, ("axis", "[-2, 1]", "2")),
    ("rank", {"axis": "0"}, TypeError, ("axis", "int", "str")),
    ("rank", {"axis": True}, TypeError, ("axis", "int", "bool")),
    *(("rankreg_loss", {"lam": lam}, ValueError, ("lam", "positive", str(float(lam))))
      for lam in (0, -1.0, float("nan"), float("inf"))),
    *(("rankreg_loss", {"lam": lam}, TypeError, ("lam", "float", type(lam).__name__))
      for lam in ("1", True, 1j, torch.tensor(1.0))),
    ("rankreg_loss", {"x": X.astype("f"), "lam": 1e50}, ValueError, ("lam", "float32", "1e+50")),
    ("rankreg_loss", {"power": 0}, ValueError, ("power", "at least 1", "0")),
    ("rankreg_loss", {"normalize": "n"}, ValueError, ("normalize", "'length'", "'n'")),
    ("rankreg_loss", {"reduction": "avg"}, ValueError, ("reduction", "'mean'", "'avg'")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "arguments", "error", "named"),
    BAD,
    ids=[f"{f}-{next(iter(a))}-{i}" for i, (f, a, _, _) in enumerate(BAD)],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_error_names_function_argument_requirement_and_value(
    function, arguments, error, named, backend
):
    with use_backend(backend), pytest.raises(error) as caught:
        CALLS[function](**arguments)
    message = str(caught.value)
    assert message.startswith(f"{function}: ")
    for text in named:
        assert text in message


def test_lam_of_double_scores_may_be_beyond_float32():
    assert arrays.rankreg_loss(X, P, lam=1e50) == arrays.rankreg_loss(X, P, lam=1)


@native
def test_plain_arrays_are_taken_in_place(monkeypatch):
    monkeypatch.setattr(arrays, "_plain", lambda _: pytest.fail("copied"))
    x = np.arange(24.0).reshape(4, 6)
    for a in (x, x[::2], x[:, 1], x[:, ::-1], x[:, ::2].astype("e"), x.T, x.reshape(2, 2, 6)):
        arrays.rank(a, where=a > 3)
        arrays.positive_ranks(a, a > 3)
        arrays.rankreg_loss(a, a > 3, gradient=True)


@native
def test_other_python_threads_run_during_a_long_call():
    x, ticks, done = np.random.default_rng(0).standard_normal(3_000_000), [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(None)

    thread = threading.Thread(target=tick)
    thread.start()
    before = len(ticks)
    arrays.rank(x)
    during = len(ticks) - before
    done.set()
    thread.join()
    assert during > 5


def test_an_unusable_request_raises():
    if _backend.usable("cuda") is None:
        pytest.skip("CUDA is usable here")
    code = "import numpy\nfrom rankreg_ext import arrays\narrays.rank(numpy.zeros(3))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "RANKREG_BACKEND": "cuda"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("RuntimeError: rank: backend 'cuda'")


def test_module_says_what_it_needs():
    code = "import sys; sys.modules['numpy'] = None\nimport rankreg_ext\nimport rankreg_ext.arrays"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: rankreg_ext.arrays needs numpy: pip install numpy"
