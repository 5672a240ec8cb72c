"""rankdata against scipy's: equal ranks, dtypes and shapes, and errors of the same kind."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rankreg_ext import _backend, use_backend
from rankreg_ext.compat import scipy_stats
from rankreg_ext.compat.scipy_stats import rankdata

METHODS = ("average", "min", "max", "dense", "ordinal")
POLICIES = ("propagate", "omit", "raise")
REALS = tuple("?bBhHiIlLqQefd")
OTHERS = ("g", "F", "D", "G", "O", "<U3", "S3", "M8[s]", "m8[s]")
SWAPPED = (">f8", ">f4", ">f2", ">i8", ">u2", "<f8", "<i4")
LAYOUTS = ("contiguous", "fortran", "reversed", "strided", "expanded", "misaligned", "read-only")
POOLS = ("ties", "special", "distinct")


def assert_equal(got, expected):
    assert type(got) is np.ndarray
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


def assert_same(a, *args, **options):
    """Our result is scipy's; where scipy raises we raise an error that is caught like its own."""
    try:
        expected = scipy.stats.rankdata(a, *args, **options)
    except Exception as error:
        with pytest.raises(type(error)):
            rankdata(a, *args, **options)
    else:
        assert_equal(rankdata(a, *args, **options), expected)


def array(rng, shape, dtype, pool, layout):
    kind = np.dtype(dtype).kind
    x = rng.integers(-3, 4, shape)
    if pool == "distinct":
        x = rng.permutation(int(np.prod(shape))).reshape(shape)
    if kind in "bu":
        x = np.abs(x)
    x = x.astype("i8").astype(dtype) if kind in "mM" else np.asarray(x).astype(dtype)
    if pool == "special" and kind in "fc":
        x = np.array(x)
        for value in (np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).smallest_subnormal):
            x[rng.random(shape) < 0.1] = value
    if pool == "special" and kind in "mM":
        x = np.array(x)
        x[rng.random(shape) < 0.2] = np.array("NaT", dtype)
    if kind == "c":
        x = x + (rng.integers(-1, 2, shape) * 1j).astype(dtype)
    return lay_out(np.asarray(x), layout)


def lay_out(x, layout):
    if layout == "fortran":
        return np.asfortranarray(x)
    if layout == "misaligned" and x.dtype.kind != "O":
        raw = np.empty(x.nbytes + 1, np.uint8)[1:]
        raw = raw.view(x.dtype).reshape(x.shape)
        raw[...] = x
        return raw
    if layout == "read-only":
        x.flags.writeable = False
    if x.ndim and layout == "reversed":
        return x[..., ::-1]
    if x.ndim and layout == "strided":
        return np.repeat(x, 3, -1)[..., 1::3]
    if x.ndim and layout == "expanded":
        return np.broadcast_to(x, (2, *x.shape))
    return x


shapes = st.one_of(
    st.sampled_from(((), (2, 0, 3, 4), (2, 2, 0))),
    st.lists(st.sampled_from((0, 1, 2, 3, 7, 20)), min_size=1, max_size=3).map(tuple),
    st.sampled_from((31, 32, 33, 96, 97, 128, 129, 257, 1025)).map(lambda n: (n,)),
    st.sampled_from((65, 130, 300)).map(lambda n: (3, n)),
    st.sampled_from((65, 130)).map(lambda n: (n, 4)),
)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=shapes,
    dtype=st.sampled_from(REALS + OTHERS + SWAPPED),
    pool=st.sampled_from(POOLS),
    layout=st.sampled_from(LAYOUTS),
    method=st.sampled_from(METHODS),
    policy=st.sampled_from(POLICIES),
    axis=st.sampled_from((None, -1, 0, 1, -2, 2)),
)
@settings(max_examples=1500)
def test_equals_scipy(seed, shape, dtype, pool, layout, method, policy, axis):
    x = array(np.random.default_rng(seed), shape, dtype, pool, layout)
    before = x.copy()
    assert_same(x, method, axis=axis, nan_policy=policy)
    np.testing.assert_array_equal(x, before)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(((), (1,), (7,), (3, 40), (0, 2))),
    dtype=st.sampled_from(REALS + OTHERS + SWAPPED),
    pool=st.sampled_from(POOLS),
    layout=st.sampled_from(LAYOUTS),
    method=st.sampled_from(METHODS),
    policy=st.sampled_from(POLICIES),
    axis=st.sampled_from((None, -1, 0)),
)
@settings(max_examples=300)
def test_equals_scipy_in_plain_torch(seed, shape, dtype, pool, layout, method, policy, axis):
    x = array(np.random.default_rng(seed), shape, dtype, pool, layout)
    with use_backend("reference"):
        assert_same(x, method, axis=axis, nan_policy=policy)


@pytest.mark.parametrize("n", [1_000, 70_000, 300_000])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "u1"])
@pytest.mark.parametrize("lists", [1, 3])
def test_long_lists_on_several_threads(threads, n, dtype, lists):
    rng = np.random.default_rng(n)
    x = (100 * rng.standard_normal((lists, n))).astype(dtype)
    if np.dtype(dtype).kind == "f":
        x[-1, n // 2] = np.nan
    for count in (1, 3):
        threads(count)
        for method in ("average", "max", "dense", "ordinal"):
            for policy in ("propagate", "omit"):
                assert_same(x, method, axis=-1, nan_policy=policy)


@pytest.mark.parametrize("method", METHODS)
def test_many_lists_some_of_which_hold_nan(threads, method):
    threads(3)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 50, (4000, 33)).astype(float)
    x[rng.integers(0, 4000, 60), rng.integers(0, 33, 60)] = np.nan
    for policy in POLICIES:
        assert_same(x, method, axis=1, nan_policy=policy)
        assert_same(x, method, axis=0, nan_policy=policy)


@pytest.mark.parametrize(
    "a",
    [
        [],
        [[]],
        5,
        2.5,
        "word",
        [3, 1, 2],
        ((1.0, 2.0), (0.0, -0.0)),
        [True, False],
        [1, 2.5, float("nan")],
        ["b", "a", "b"],
        [[1, 2], [3]],
        None,
        np.float32(3),
        np.matrix([[3, 1], [2, 2]]),
        np.ma.masked_array([3, 1, 2], [0, 1, 0]),
        np.array(["foo", "bar", "bar"], object),
        np.array([3, 1.5, 3], object),
        np.array([3, None], object),
        np.array([[1, 2], ["b", "a"]], object),
        np.array([1.0, float("nan")], object),
        np.array([(1, 2.0), (0, 3.0)], "i4,f8"),
        np.array([(1, 2.0), (0, 3.0)], "i4,f8")["f1"],
        np.array([(1, 2.0), (0, 3.0)], "i2,f4")["f0"],
    ],
    ids=repr,
)
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_asarray_takes(a, policy):
    for axis in (None, 0, 1):
        for method in ("average", "dense"):
            assert_same(a, method, axis=axis, nan_policy=policy)


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "first"},
        {"method": None},
        {"method": "MIN"},
        {"nan_policy": "drop"},
        {"nan_policy": None},
        {"axis": 3},
        {"axis": -4},
        {"axis": 2**32},
        {"axis": 2**80},
        {"axis": np.int64(-1)},
        {"axis": 0.0},
        {"axis": "0"},
    ],
    ids=repr,
)
def test_arguments_that_are_no_good(shape, options):
    assert_same(np.ones(shape), **options)


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match=r'^unknown method "first"$'):
        rankdata([1.0], "first")
    with pytest.raises(ValueError, match=r"'propagate', 'omit', 'raise', got 'drop'$"):
        rankdata([1.0], nan_policy="drop")
    with pytest.raises(ValueError, match=r"^The input contains nan values$"):
        rankdata(np.array([1.0, np.nan]), nan_policy="raise")
    with pytest.raises(np.exceptions.AxisError):
        rankdata(np.ones((2, 2)), axis=2)
    with pytest.raises(TypeError):
        rankdata([1.0], "min", 0)  # keyword only, as in scipy


@given(name=st.sampled_from(METHODS), policy=st.sampled_from(POLICIES))
@example(name="average", policy="omit")
@settings(max_examples=15)
def test_names_are_compared_by_value(name, policy):
    a = np.array([3.0, 1.0, 1.0])
    other_name, other_policy = "".join(list(name)), "".join(list(policy))
    assert_equal(
        rankdata(a, other_name, nan_policy=other_policy),
        scipy.stats.rankdata(a, name, nan_policy=policy),
    )


@pytest.mark.skipif(_backend.usable("cpu") is not None, reason="no native library")
def test_plain_arrays_go_straight_to_the_kernel(monkeypatch):
    monkeypatch.setattr(scipy_stats, "_general", lambda *_: pytest.fail("not in place"))
    x = np.arange(24.0).reshape(4, 6)
    for a in (x, x.T, x[::2], x[:, 1], x[:, ::-1], x.astype("f2"), x > 3):
        rankdata(a, axis=-1)
        rankdata(a, "min", axis=0, nan_policy="omit")
    for a in (x, x[:, 1], x[:, 0:6:2], x[3]):
        rankdata(a)


def test_module_says_what_it_needs():
    code = "import sys; sys.modules['numpy'] = None\nimport rankreg_ext.compat.scipy_stats"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.returncode == 1
    last = done.stderr.decode().strip().splitlines()[-1]
    assert last == "ImportError: rankreg_ext.arrays needs numpy: pip install numpy"
