"""Every back-end equals the oracle: ranks, gradients, and the loss up to its last place.

The oracle is evaluated on the CPU, and there the answers are compared.
"""

from contextlib import contextmanager

import pytest
import torch
from emulated import emulated
from hypothesis import given, settings
from samples import (
    BACKENDS as COMPILED_BACKENDS,
)
from samples import FLOATS, INTEGERS, TRITON, assert_equal, cases, on_device, values_of

import rankreg_ext
from rankreg_ext import _backend, reference
from rankreg_ext.reference import TIES

CASES = settings(max_examples=2000)


BACKENDS = (*COMPILED_BACKENDS, pytest.param("triton", marks=TRITON))
# The device of each back-end's tensors: those emulated and interpreted take the CPU's.
DEVICES = {
    "cpu": "cpu",
    "cuda": "cuda",
    "triton": "cuda",
    "emulated": "cpu",
    "interpreted": "cpu",
}
# Of all cases, these take every so many: an emulator and an interpreter are slow, and Triton
# compiles for each dtype, rule and power of two.
EVERY = {"emulated": 6, "triton": 40, "interpreted": 40}
LONGEST_INTERPRETED = 129
# A large GPU and a small one take different ways; threads run in different orders.
GPUS = (
    {"multiprocessors": 132, "shared_most": 227 * 1024},
    {"multiprocessors": 2, "shared_most": 48 * 1024},
)


def pytest_generate_tests(metafunc):
    """`backend` is each of the module's: of this one, and of one that takes its tests over."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", metafunc.module.BACKENDS)


@contextmanager
def each_variant(backend, seed=1):
    """Yields an iterator over what a back-end holds several of.

    These are the CPU's instruction sets, and the sizes of an emulated GPU. One evaluation of the
    oracle serves them all.
    """
    native = _backend.load_native()
    in_use = native.isa()

    def variants():
        if backend == "emulated":
            for number, gpu in enumerate(GPUS):
                with emulated(seed=seed + number, **gpu):
                    yield gpu
            return
        name = "triton" if backend == "interpreted" else backend
        for isa in native.isas() if backend == "cpu" else (in_use,):
            native.use_isa(isa)
            with rankreg_ext.use_backend(name):
                yield isa

    all_variants = variants()
    try:
        yield all_variants
    finally:
        all_variants.close()  # leaves use_backend after a failure, too
        native.use_isa(in_use)


def left_out(backend, case):
    if backend == "interpreted" and case.n > LONGEST_INTERPRETED:
        return True
    return case.seed % EVERY.get(backend, 1) != 0


def test_every_instruction_set_of_this_machine_is_compared():
    native = _backend.load_native()
    with each_variant("cpu") as variants:
        assert [(isa, native.isa()) for isa in variants] == [(isa, isa) for isa in native.isas()]
    assert native.isas()[0] == "baseline"
    assert native.isa() == native.isas()[-1]
    with pytest.raises(
        ValueError, match=r"isa must be one of those that isas\(\) lists, got 'mmx'"
    ):
        native.use_isa("mmx")


def test_there_is_a_backend_to_compare():
    """The native library was built: without it this file would compare the oracle with itself."""
    assert _backend.usable("cpu") is None


def gradient(function, scores, upstream):
    """The value and the gradient, on the CPU."""
    x = scores.detach().requires_grad_()
    out = function(x)
    out.backward(upstream if out.shape == upstream.shape else upstream.flatten()[0].to(out.dtype))
    return out.detach().cpu(), x.grad.cpu()


@CASES
@given(case=cases(FLOATS + INTEGERS))
def test_rank(backend, case):
    if left_out(backend, case):
        return

    def run(module, device):
        x, where = on_device(case.scores(), device), on_device(case.where(), device)
        return module.rank(x, descending=case.descending, ties=case.ties, where=where).cpu()

    expected = run(reference, "cpu")
    with each_variant(backend, case.seed) as variants:
        for _ in variants:
            assert_equal(run(rankreg_ext, DEVICES[backend]), expected)


@CASES
@given(case=cases())
def test_blackbox_rank(backend, case):
    if left_out(backend, case):
        return

    def run(module, device):
        x, where = on_device(case.scores(), device), on_device(case.where(), device)
        args = {"descending": case.descending, "ties": case.ties, "where": where}
        function = lambda x: module.blackbox_rank(x, case.lam, **args)  # noqa: E731
        return gradient(function, x, on_device(case.upstream(), device))

    expected_ranks, expected_grad = run(reference, "cpu")
    with each_variant(backend) as variants:
        for _ in variants:
            ranks, grad = run(rankreg_ext, DEVICES[backend])
            assert_equal(ranks, expected_ranks)
            assert_equal(grad, expected_grad)


@CASES
@given(case=cases())
def test_positive_ranks(backend, case):
    if left_out(backend, case):
        return

    def run(module, device):
        x, positives, where, upstream = (
            on_device(item, device)
            for item in (case.scores(), case.positives(), case.where(), case.upstream())
        )
        function = lambda x: module.positive_ranks(x, positives, lam=case.lam, where=where)  # noqa: E731
        return gradient(function, x, upstream)

    expected_ranks, expected_grad = run(reference, "cpu")
    with each_variant(backend) as variants:
        for _ in variants:
            ranks, grad = run(rankreg_ext, DEVICES[backend])
            assert_equal(ranks, expected_ranks)
            assert_equal(grad, expected_grad)


@CASES
@given(case=cases())
def test_rankreg_loss(backend, case):
    if left_out(backend, case):
        return

    args = {
        "lam": case.lam,
        "power": case.power,
        "normalize": case.normalize,
        "reduction": case.reduction,
    }
    shape = case.batch if case.reduction == "none" else ()
    upstream = torch.randn(shape, generator=case.generator()) * 65536
    upstream = upstream.to(reference.compute_dtype(case.dtype))

    def run(module, device):
        x, positives, where = (
            on_device(item, device) for item in (case.scores(), case.positives(), case.where())
        )
        function = lambda x: module.rankreg_loss(x, positives, where=where, **args)  # noqa: E731
        return gradient(function, x, upstream.to(device))

    expected_loss, expected_grad = run(reference, "cpu")
    with each_variant(backend) as variants:
        for _ in variants:
            loss, grad = run(rankreg_ext, DEVICES[backend])
            assert_equal(grad, expected_grad)
            # The sum over lists, and over terms of 2^53 and more, may be added in another order.
            torch.testing.assert_close(
                loss, expected_loss, rtol=4 * torch.finfo(loss.dtype).eps, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("n", [65535, 65536, 65537, 100_003])
@pytest.mark.parametrize("values", ["normal", "tied", "constant", "clustered", "special"])
def test_long_lists_use_threads_and_stay_equal(backend, n, values, threads):
    """One list split over threads: chunks, tie groups across their borders, absent items."""
    g = torch.Generator().manual_seed(n)
    x = values_of(values, (n,), torch.float32, g)
    where = torch.rand(n, generator=g) < 0.9
    upstream = torch.randn(n, generator=g)

    def run(module, device, ties):
        mask = where.to(device)
        return gradient(
            lambda x: module.blackbox_rank(x, 0.5, ties=ties, where=mask),
            x.to(device),
            upstream.to(device),
        )

    for ties in TIES:
        expected = run(reference, "cpu", ties)
        for count in (1, 2, 3) if backend == "cpu" else (1,):
            threads(count)
            with each_variant(backend) as variants:
                for _ in variants:
                    actual = run(rankreg_ext, DEVICES[backend], ties)
                    assert_equal(actual[0], expected[0])
                    assert_equal(actual[1], expected[1])


@pytest.mark.parametrize("n", [3000, 70_000])
@pytest.mark.parametrize("count", [1, 5, 8, 13, 21, 42, 45, 127, 128, 256, 257, 1500, 8750, 8751])
@pytest.mark.parametrize("values", ["normal", "clustered", "special"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_many_positives(backend, n, count, values, dtype, threads):
    """Compare-all, searches, table, ranks of all; around the capacity (256); two threads.

    tests/cpp tries both sides of every change of way, on every instruction set.
    """
    if backend == "emulated" and n > 3000 and (count > 257 or dtype != torch.float32):
        pytest.skip("the emulator is slow; test_cuda_stream.py has as many in short lists")
    g = torch.Generator().manual_seed(count)
    x = values_of(values, (n,), dtype, g)
    positives = torch.zeros(n, dtype=torch.bool)
    positives[torch.randperm(n, generator=g)[:count]] = True
    upstream = torch.randn(n, generator=g).to(reference.rank_dtype(dtype, n))
    threads(2)

    def losses(module, device):
        chosen, weights = positives.to(device), upstream.to(device)

        def total(x):
            loss = module.rankreg_loss(x, chosen, lam=3.0)
            return (module.positive_ranks(x, chosen, lam=0.7) * weights).sum() + loss

        x_ = x.to(device, copy=True).requires_grad_()
        total(x_).backward()
        return module.positive_ranks(x_.detach(), chosen).cpu(), x_.grad.cpu()

    expected = losses(reference, "cpu")
    with each_variant(backend) as variants:
        for _ in variants:
            actual = losses(rankreg_ext, DEVICES[backend])
            assert_equal(actual[0], expected[0])
            assert_equal(actual[1], expected[1])


@pytest.mark.parametrize("threads_used", [1, 2])
def test_many_lists_are_shared_out(backend, threads_used, threads):
    threads(threads_used)
    x = torch.randn(700, 130)
    expected = reference.rank(x)
    x = x.to(DEVICES[backend])
    with each_variant(backend) as variants:
        for _ in variants:
            together = rankreg_ext.rank(x)
            assert_equal(together.cpu(), expected)
            assert_equal(torch.stack([rankreg_ext.rank(row) for row in x]), together)


@pytest.mark.slow
def test_ranks_stay_exact_in_a_list_too_long_for_float32(backend):
    """2^24 + 3 items: the ranks are float64, and the last one is not rounded."""
    n = 2**24 + 3
    device = DEVICES[backend]
    x = (torch.arange(n, device=device) % 1000).to(torch.int16)
    share = torch.zeros(n, dtype=torch.bool, device=device)
    share[-1] = True
    scores = torch.arange(n, 0, -1, dtype=torch.float32, device=device).requires_grad_()
    with each_variant(backend) as variants:
        next(variants)  # the lengths of lists are what this is about
        ranks = rankreg_ext.rank(x, ties="ordinal").cpu()
        assert ranks.dtype == torch.float64
        assert ranks.max() == n
        assert_equal(ranks.sort().values, torch.arange(1, n + 1, dtype=torch.float64))
        out = rankreg_ext.positive_ranks(scores, share, lam=2.0**25)
        assert out[-1] == n
        out[-1].backward()  # moves it to the top: n - 1 places
    grad = scores.grad.cpu()
    assert grad[-1] == torch.tensor(1.0 - n) / 2.0**25
    assert torch.equal(grad[:-1], torch.full((n - 1,), 2.0**-25))
