"""What only a CUDA device can show: streams, graphs, waiting, memory, launches, long lists.

The property tests of test_backends_agree.py run there as well. The oracle is evaluated on the CPU.
test_gpu_triton.py runs most of these tests on the kernels in Triton.
``benchmarks/gpu_check.sh`` runs all of it; compute-sanitizer gets the tests named smoke.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from samples import CUDA, assert_equal, laid_out, on_device, values_of
from torch.autograd import DeviceType

import rankreg_ext
from rankreg_ext import blackbox_rank, positive_ranks, rank, rankreg_loss, reference
from rankreg_ext.losses import hinge_violations

pytestmark = list(CUDA)
ops = torch.ops.rankreg_ext

# Lengths around every power of two, where kernels change their way, and some that are none.
POWERS = [2**k for k in range(5, 21)]
LENGTHS = sorted({n + d for n in POWERS for d in (-1, 0, 1)} | {3000, 24_000, 100_003, 10**6})
SLEEP = 400_000_000  # cycles: a fifth of a second or more
SHAPES = [(5, 20), (3, 100), (2, 700), (2, 5000), (70_001,)]


BACKEND = "cuda"


@pytest.fixture(autouse=True)
def _backend(request):
    """The back-end of the module that a test is collected from."""
    with rankreg_ext.use_backend(request.module.BACKEND):
        yield


def inputs(shape, dtype=torch.float32, values="normal", share=0.05, seed=0, device="cuda"):
    """Scores, positives and the gradient that arrives at their ranks."""
    g = torch.Generator().manual_seed(seed)
    x = values_of(values, shape, dtype, g)
    positives = torch.rand(shape, generator=g) < share
    upstream = torch.randn(shape, generator=g).to(reference.rank_dtype(dtype, shape[-1]))
    return tuple(item.to(device) for item in (x, positives, upstream))


def everything(module, x, positives, upstream, lam=2.0, where=None):
    """Every function's value and gradient, the losses last."""
    leaf = x.detach().requires_grad_()
    ranks = module.blackbox_rank(leaf, lam, where=where)
    some = module.positive_ranks(leaf, positives, lam=lam, where=where)
    losses = module.rankreg_loss(leaf, positives, lam=lam, where=where, reduction="none")
    loss = module.rankreg_loss(leaf, positives, lam=lam, where=where)
    values = (ranks, some, losses, loss)
    arriving = (upstream, upstream, torch.ones_like(losses), torch.ones_like(loss))
    gradients = [
        torch.autograd.grad(value, leaf, g)[0] for value, g in zip(values, arriving, strict=True)
    ]
    ordinal = module.rank(x, ties="ordinal", where=where)
    return [ordinal, *gradients, *(value.detach() for value in values)]


def assert_right(actual, *args, **kwargs):
    """``actual`` is what the oracle makes of these arguments, on the CPU."""

    def moved(item):
        return item.cpu() if isinstance(item, torch.Tensor) else item

    options = {name: moved(item) for name, item in kwargs.items()}
    expected = everything(reference, *map(moved, args), **options)
    for got, value in zip(actual[:-2], expected[:-2], strict=True):
        assert_equal(got.cpu(), value)
    for got, value in zip(actual[-2:], expected[-2:], strict=True):
        eps = torch.finfo(value.dtype).eps
        torch.testing.assert_close(got.cpu(), value, rtol=4 * eps, atol=0, equal_nan=True)


def assert_same(actual, expected):
    """Bit for bit, NaN included."""
    for got, value in zip(actual, expected, strict=True):
        assert got.dtype == value.dtype
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
        assert torch.equal(got.contiguous().view(whole), value.contiguous().view(whole))


# ------------------------------------------------------------------------------------------- values


def test_uninitialised_memory_is_poisoned_here_too():
    assert torch.empty(1000, device="cuda").isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (40, 33), (3, 200), (2, 1500), (2, 5000), (40_000,)])
def test_smoke(shape, dtype):
    """Small, and through every function: what compute-sanitizer looks at."""
    args = inputs(shape, dtype, "special")
    where = args[0] != 1
    assert_right(everything(rankreg_ext, *args, where=where), *args, where=where)


@pytest.mark.parametrize("n", LENGTHS)
def test_lengths(n):
    lists = max(1, min(7, 30_000 // n))
    kinds = [("normal", torch.float32, 0.01)]
    if n <= 2**17 + 1:
        kinds += [("tied", torch.bfloat16, 0.3), ("special", torch.float64, 0.01)]
    for values, dtype, share in kinds:
        args = inputs((lists, n), dtype, values, share, seed=n)
        assert_right(everything(rankreg_ext, *args), *args)


@pytest.mark.parametrize("count", [8, 128, 257, 4096, 62_500])
@pytest.mark.parametrize("values", ["normal", "clustered"])
def test_positives_of_a_million(count, values):
    x, _, upstream = inputs((10**6,), values=values, seed=count)
    positives = torch.zeros(10**6, dtype=torch.bool)
    positives[torch.randperm(10**6)[:count]] = True
    positives = positives.cuda()

    def run(module, x, positives, upstream):
        leaf = x.detach().requires_grad_()
        ranks = module.positive_ranks(leaf, positives, lam=0.7)
        loss = module.rankreg_loss(leaf, positives, lam=3.0)
        g = torch.autograd.grad(ranks, leaf, upstream)[0]
        return [item.cpu() for item in (ranks.detach(), g, torch.autograd.grad(loss, leaf)[0])]

    expected = run(reference, x.cpu(), positives.cpu(), upstream.cpu())
    for got, value in zip(run(rankreg_ext, x, positives, upstream), expected, strict=True):
        assert_equal(got, value)


# 65,535 is the most that a grid has in its second and third dimension.
WIDE = [(100_003, 3), (65_537, 40), (2, 1001, 130), (300, 1025), (9, 9000)]


@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_many_lists(shape):
    args = inputs(shape)
    assert_right(everything(rankreg_ext, *args), *args)


@pytest.mark.parametrize("n", [4099, 70_001, 300_003])
@pytest.mark.parametrize("layout", ["strided", "misaligned", "expanded", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_long_lists_in_any_layout(n, layout, dtype):
    """Scores, positives, mask and gradient alike."""

    def arranged(item):
        if layout == "expanded":
            return on_device(item[:1].expand(2, n), "cuda")
        return on_device(laid_out(item, layout), "cuda")

    x, positives, upstream = inputs((2, n), dtype, "special", device="cpu")
    where = torch.rand(2, n) < 0.9
    args = [arranged(item) for item in (x, positives, upstream)]
    where = arranged(where)
    assert args[0].stride() != (n, 1)
    assert_right(everything(rankreg_ext, *args, where=where), *args, where=where)


@pytest.mark.slow
def test_more_than_2_31_scores_in_all():
    """Offsets of 64 bits: lists at both ends are right."""
    lists, n = 2**24 + 3, 128
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    x = torch.randint(0, 100, (lists, n), dtype=torch.int8, device="cuda")
    ranks = rank(x)
    for ends in (slice(0, 5), slice(2**24 - 2, None)):
        assert_equal(ranks[ends].cpu(), reference.rank(x[ends].cpu()))
    del ranks
    positives = x == 7
    scores = x.half()
    some = positive_ranks(scores, positives)
    for ends in (slice(0, 5), slice(2**24 - 2, None)):
        expected = reference.positive_ranks(scores[ends].cpu(), positives[ends].cpu())
        assert_equal(some[ends].cpu(), expected)


def test_same_bits_in_every_run():
    for shape in [(3, 33), (2, 5000), (500_009,)]:
        args = inputs(shape, values="tied", share=0.2)
        first = everything(rankreg_ext, *args)
        for _ in range(20):
            assert_same(everything(rankreg_ext, *args), first)


def hinges(x, positives, upstream, delta=0.25):
    """Value and gradient; upstream values in quarters have exact sums."""
    leaf = x.detach().requires_grad_()
    q = hinge_violations(leaf, positives, delta)
    return q.detach(), *torch.autograd.grad(q, leaf, (upstream * 4).round() / 4)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (40, 33), (2, 1024), (2, 1025), (40_003,)])
def test_smoke_of_hinge_violations(shape, dtype, share):
    """Equal to plain torch on the CPU, but for the order of sums of double; the same every run."""
    args = inputs(shape, dtype, "special", share)
    first = hinges(*args)
    with rankreg_ext.use_backend("reference"):
        q, gradient = hinges(*(item.cpu() for item in args))
    eps = torch.finfo(q.dtype).eps * (64 if dtype == torch.float64 else 1)
    torch.testing.assert_close(first[0].cpu(), q, rtol=eps, atol=0, equal_nan=True)
    assert_equal(first[1].cpu(), gradient)
    for _ in range(5):
        assert_same(hinges(*args), first)


@pytest.mark.parametrize("shape", [(3, 700), (70_001,)], ids=str)
def test_graph_of_hinge_violations(shape):
    """Captured, which waiting for the device would forbid; delta changes between replays."""
    args, delta = inputs(shape), torch.tensor(0.25, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            hinges(*args, delta)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = hinges(*args, delta)
    for i in range(20):
        for item, value in zip(args, inputs(shape, seed=i), strict=True):
            item.copy_(value)
        delta.fill_(i / 8)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, hinges(*args, i / 8))


# ------------------------------------------------------------------------------ streams and devices


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_current_stream_is_the_one_that_is_used(shape):
    """Inputs that arrive late on a side stream are waited for there."""
    late = inputs(shape, seed=1)
    args = [torch.zeros_like(item) for item in late]
    everything(rankreg_ext, *args)  # loads what there is to load
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        for item, value in zip(args, late, strict=True):
            item.copy_(value)
        actual = everything(rankreg_ext, *args)
    torch.cuda.synchronize()
    assert_right(actual, *late)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_streams_do_not_get_in_each_others_way(shape):
    args = [inputs(shape, seed=seed) for seed in range(4)]
    expected = [everything(rankreg_ext, *item) for item in args]
    streams = [torch.cuda.Stream() for _ in args]
    torch.cuda.synchronize()
    actual = []
    for _ in range(25):
        for stream, item in zip(streams, args, strict=True):
            with torch.cuda.stream(stream):
                actual.append(everything(rankreg_ext, *item))
    torch.cuda.synchronize()
    for i, item in enumerate(actual):
        assert_same(item, expected[i % len(args)])


def test_streams_of_several_threads():
    shapes = [(3, 100), (2, 5000), (70_001,), (2, 700)]
    args = [inputs(shape) for shape in shapes]
    expected = [everything(rankreg_ext, *item) for item in args]
    torch.cuda.synchronize()

    def work(item):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = [everything(rankreg_ext, *item) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
            return found

    with ThreadPoolExecutor(len(args)) as pool:
        for found, value in zip(pool.map(work, args), expected, strict=True):
            for item in found:
                assert_same(item, value)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_stream_and_device_are_those_of_the_tensor():
    args = inputs((3, 700), device="cuda:1")
    with torch.cuda.device(0):
        actual = everything(rankreg_ext, *args)
        assert torch.cuda.current_device() == 0
    assert all(item.device == torch.device("cuda:1") for item in actual)
    assert_right(actual, *args)


# ------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graph_of_everything_is_replayed_with_fresh_inputs(shape):
    """Forward, backward and losses, with lam as a tensor that changes from replay to replay."""
    args = inputs(shape)
    lam = torch.tensor(2.0, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            everything(rankreg_ext, *args, lam=lam)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = everything(rankreg_ext, *args, lam=lam)
    for i in range(100):
        fresh = inputs(shape, values=("normal", "tied", "special")[i % 3], seed=i)
        for item, value in zip(args, fresh, strict=True):
            item.copy_(value)
        lam.fill_(0.5 + i % 7)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, everything(rankreg_ext, *args, lam=0.5 + i % 7))
        if i % 25 == 0:
            assert_right(captured, *fresh, lam=0.5 + i % 7)


def test_graph_of_empty_lists():
    for shape in [(0, 5), (3, 0)]:
        args = inputs(shape)
        everything(rankreg_ext, *args)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = everything(rankreg_ext, *args)
        graph.replay()
        torch.cuda.synchronize()
        assert_right(captured, *args)


# ------------------------------------------------------------------------ waiting, memory, launches


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stream_is_never_waited_for_by_the_host(shape):
    args, lam = inputs(shape), torch.tensor(2.0, device="cuda")
    everything(rankreg_ext, *args, lam=lam)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # what torch itself would wait for
    try:
        everything(rankreg_ext, *args, lam=lam)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    awake = torch.cuda.Event()
    torch.cuda._sleep(SLEEP)
    awake.record()
    everything(rankreg_ext, *args, lam=lam)
    assert not awake.query(), "the calls returned only after the device was done"
    torch.cuda.synchronize()
    assert awake.query()


def test_memory_does_not_grow_with_calls():
    args = [inputs(shape) for shape in SHAPES]
    for item in args:
        everything(rankreg_ext, *item)
    torch.cuda.synchronize()
    before, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for i in range(1000):
        everything(rankreg_ext, *args[i % len(args)])
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert free - torch.cuda.mem_get_info()[0] < 64 * 2**20  # past torch's allocator, too


def test_memory_of_rare_positives_is_small():
    """Beyond the outputs there is room for all items of a list, since P is not known to the host.

    Of that only what belongs to positives is touched.
    """
    n = 4_000_000
    x, positives, upstream = inputs((n,), share=1e-5)
    everything(rankreg_ext, x, positives, upstream)

    def peak(call):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, kept

    with torch.no_grad():
        assert peak(lambda: rankreg_loss(x, positives, lam=2.0))[0] < (8 + 1) * n
        assert peak(lambda: positive_ranks(x, positives))[0] < (4 + 8 + 1) * n
    leaf = x.requires_grad_()
    loss = rankreg_loss(leaf, positives, lam=2.0)
    assert peak(lambda: torch.autograd.grad(loss, leaf))[0] < (4 + 16 + 1) * n


@pytest.fixture
def _plain_memory():
    """Without the poison, which is a launch of its own."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.usefixtures("_plain_memory")
@pytest.mark.parametrize("n", [32, 128, 1024, 4096])
def test_one_launch_for_a_blackbox_gradient(n):
    x, _, grad = inputs((512, n))
    args = (grad, x, rank(x), 2.0, None, True, 0, None)
    ops.blackbox_rank_backward(*args)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ops.blackbox_rank_backward(*args)
        torch.cuda.synchronize()
    launched = [e.name for e in profile.events() if e.device_type == DeviceType.CUDA]
    if not launched:
        pytest.skip("the profiler sees no kernels on this machine")
    assert len(launched) == 1, launched


# ------------------------------------------------------------------------------------ torch.compile


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("shape", [(3, 100), (2, 5000)], ids=str)
def test_compile(mode, shape):
    """Without breaks in the graph, and as a CUDA graph made by torch."""
    torch._dynamo.reset()

    def function(x, positives, lam):
        ranks = blackbox_rank(x, lam, ties="average") * rank(x)
        some = positive_ranks(x, positives, lam=lam)
        return ranks.sum() + (some**2).sum() + rankreg_loss(x, positives, lam=lam)

    compiled = torch.compile(function, fullgraph=True, mode=mode)
    lam = torch.tensor(1.5, device="cuda")
    for seed in range(6):
        x, positives, _ = inputs(shape, seed=seed)
        x.requires_grad_()
        lam.fill_(1.5 + seed)
        torch.compiler.cudagraph_mark_step_begin()
        actual = compiled(x, positives, lam)
        gradient = torch.autograd.grad(actual, x)[0]
        expected = function(x, positives, lam)
        torch.testing.assert_close(actual, expected)
        assert_equal(gradient, torch.autograd.grad(expected, x)[0])
