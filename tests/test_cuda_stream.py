"""Rare positives of long lists on the emulated GPU equal the oracle.

With few multiprocessors a few thousand items are spread over several blocks, and with little shared
memory a tree holds few thresholds, so that small inputs take every way through the kernels.
"""

from fractions import Fraction
from functools import partial

import pytest
import torch
from emulated import emulated as emulated_ops
from hypothesis import given, settings
from samples import FLOATS, SPECIAL, Case, assert_equal, cases, laid_out, values_of

import rankreg_ext
from rankreg_ext import reference

# Whatever the length of the lists: rankreg_ext itself leaves the short ones to other kernels.
emulated = partial(emulated_ops, ops="rankreg_ext_stream")

SPACIOUS = 227 * 1024
TIGHT = 9 * 512  # 512 bytes of thresholds a tree: 127 floats, 63 doubles


def results(module, x, positives, upstream, **args):
    """Ranks, loss, and the gradient of each."""
    where, lam = args.get("where"), args.get("lam", 0.5)
    x = x.detach().requires_grad_()
    ranks = module.positive_ranks(x, positives, lam=lam, where=where)
    (grad,) = torch.autograd.grad(ranks, x, upstream)
    options = {k: args[k] for k in ("power", "normalize", "reduction") if k in args}
    loss = module.rankreg_loss(x, positives, lam=args.get("loss_lam", lam), where=where, **options)
    outer = torch.linspace(0.5, 3, max(loss.numel(), 1), dtype=loss.dtype)[: loss.numel()]
    (loss_grad,) = torch.autograd.grad(loss, x, outer.reshape(loss.shape))
    return {"ranks": ranks.detach(), "grad": grad, "loss": loss.detach(), "loss_grad": loss_grad}


def assert_agree(x, positives, upstream, gpu, **args):
    expected = results(reference, x, positives, upstream, **args)
    with emulated(**gpu):
        actual = results(rankreg_ext, x, positives, upstream, **args)
    for name in ("ranks", "grad", "loss_grad"):
        assert_equal(actual[name], expected[name])
    eps = torch.finfo(expected["loss"].dtype).eps
    torch.testing.assert_close(
        actual["loss"], expected["loss"], rtol=4 * eps, atol=0, equal_nan=True
    )


def chosen(n, count, g, lists=None):
    """`count` positives somewhere in each list."""
    mask = torch.zeros(*(() if lists is None else (lists,)), n, dtype=torch.bool)
    for row in mask.reshape(-1, n):
        row[torch.randperm(n, generator=g)[:count]] = True
    return mask


def sample(seed, n, count, dtype, values, lists=None):
    g = torch.Generator().manual_seed(seed)
    shape = (n,) if lists is None else (lists, n)
    x = values_of(values, shape, dtype, g)
    upstream = torch.randn(shape, generator=g).to(reference.rank_dtype(dtype, n))
    return x, chosen(n, count, g, lists), upstream


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("values", ["normal", "special"])
@pytest.mark.parametrize("count", [0, 1, 8, 9, 16, 17, 85])
def test_each_number_of_positives(dtype, values, count):
    """Thresholds in registers up to 8, otherwise in a tree; several blocks a list."""
    x, positives, upstream = sample(count, 9001, count, dtype, values)
    gpu = {"seed": count + 1, "multiprocessors": 1}
    assert_agree(x, positives, upstream, gpu, lam=0.5, loss_lam=20.0)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 2047, 2048, 2049, 8191, 8192, 8193, 16400, 32769])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lengths_around_what_a_block_takes(n, dtype):
    x, positives, upstream = sample(n, n, min(n, 5 + n // 1000), dtype, "normal")
    assert_agree(x, positives, upstream, {"multiprocessors": 3, "seed": n}, lam=2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("count", [20, 21, 22, 41, 42, 43, 62, 63, 64, 126, 127, 128, 255, 300])
def test_positives_beyond_a_tree(dtype, count):
    """Rounds: with 127 floats a tree from 43 positives on backward and 128 forward."""
    x, positives, upstream = sample(count, 3001, count, dtype, "special" if count % 2 else "normal")
    gpu = {"seed": 5, "multiprocessors": 1, "shared_most": TIGHT}
    assert_agree(x, positives, upstream, gpu, lam=0.7, loss_lam=100.0)


@pytest.mark.parametrize("shared_most", [SPACIOUS, TIGHT])
@pytest.mark.parametrize("values", ["normal", "tied", "constant", "special", "sorted"])
def test_every_item_is_positive(values, shared_most):
    x, positives, upstream = sample(3, 2200, 2200, torch.float32, values)
    gpu = {"seed": 7, "multiprocessors": 1, "shared_most": shared_most}
    assert_agree(x, positives, upstream, gpu, lam=0.3)


def test_a_merged_tree_of_many_thresholds():
    """1365 moving positives fill a tree of 4095 breakpoints."""
    x, positives, upstream = sample(1, 20_000, 1365, torch.float32, "clustered")
    assert_agree(x, positives, upstream, {"seed": 2, "multiprocessors": 1}, lam=1e-5)


@pytest.mark.parametrize("layout", ["permuted", "expanded", "strided", "misaligned", "odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_layouts(layout, dtype, masked):
    """Of every argument: vectors of 16 bytes are read only where they are aligned."""
    n = 4099 if layout == "odd" else 4096
    x, positives, upstream = sample(n, n, 30, dtype, "special", lists=3)
    where = torch.rand(3, n, generator=torch.Generator().manual_seed(1)) < 0.8 if masked else None
    if layout == "expanded":
        x, positives = x[:1].expand(3, n), positives[1:2].expand(3, n)
        upstream = upstream[:, :1].expand(3, n)
        where = where[2:].expand(3, n) if masked else None
    else:
        x, positives, upstream = (laid_out(t, layout) for t in (x, positives, upstream))
    gpu = {"seed": 3, "multiprocessors": 2}
    assert_agree(x, positives, upstream, gpu, where=where, lam=0.4, loss_lam=9.0)
    if masked:
        where = laid_out(where, layout) if layout != "expanded" else where
        assert_agree(x, positives, upstream, gpu, where=where, normalize="none", lam=0.4)


@pytest.mark.parametrize("mask", ["random", "row", "nothing", "everything", "positives", "others"])
def test_masks(mask):
    x, positives, upstream = sample(11, 5000, 20, torch.float32, "special", lists=2)
    random = torch.rand(2, 5000, generator=torch.Generator().manual_seed(2)) < 0.5
    where = {
        "random": random,
        "row": torch.tensor([[True], [False]]).expand(2, 5000),
        "nothing": torch.zeros_like(random),
        "everything": torch.ones_like(random),
        "positives": positives,
        "others": ~positives,
    }[mask]
    for normalize in ("length", "none"):
        gpu = {"seed": 4, "multiprocessors": 1}
        assert_agree(x, positives, upstream, gpu, where=where, normalize=normalize, lam=3.0)


@pytest.mark.parametrize("at", ["first", "last", "middle"])
def test_positives_side_by_side(at):
    """All of them in one segment of what was found, or across the border of two."""
    x, _, upstream = sample(6, 20_000, 0, torch.float32, "normal")
    begin = {"first": 0, "last": 20_000 - 90, "middle": 10_000 - 45}[at]
    positives = torch.zeros(20_000, dtype=torch.bool)
    positives[begin : begin + 90] = True
    assert_agree(x, positives, upstream, {"seed": 8, "multiprocessors": 1}, lam=1.0)


@pytest.mark.parametrize("lam", [1e-37, 1e-3, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_extreme_steps_and_a_lam_tensor(lam, dtype):
    x, positives, upstream = sample(9, 3000, 25, dtype, "special")
    upstream[:300] = torch.tensor(SPECIAL).repeat(50).to(upstream.dtype)
    positives[:60] = True
    gpu = {"seed": 9, "multiprocessors": 1}
    assert_agree(x, positives, upstream, gpu, lam=lam)
    for kind in {torch.float64, torch.float32, dtype}:
        tensor = torch.tensor(lam, dtype=kind)
        if 0 < tensor < torch.inf:
            assert_agree(x, positives, upstream, gpu, lam=tensor)


def test_where_positives_arrive():
    """On other scores, on each other, just above and below them, and where they were."""
    steps = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, 2**-24, -(2**-24), 1e-45])
    g = torch.Generator().manual_seed(12)
    x = torch.randint(-3, 4, (4000,), generator=g).float()
    x[::7] += 2.0**-23
    positives = chosen(4000, 64, g)
    upstream = steps[torch.randint(len(steps), (4000,), generator=g)]
    assert_agree(x, positives, upstream, {"seed": 10, "multiprocessors": 1}, lam=1.0)
    tiny = values_of("subnormal", (4000,), torch.float32, g)
    assert_agree(tiny, positives, upstream * 1e-38, {"seed": 10, "multiprocessors": 1}, lam=1.0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    ("lists", "n", "dtype"),
    [(1, 2100, torch.float32), (5, 2100, torch.float64)],
    ids=str,
)
def test_reductions_over_lists(reduction, lists, n, dtype):
    """Some of them without a positive."""
    g = torch.Generator().manual_seed(lists)
    x = values_of("normal", (lists, n), dtype, g)
    positives = torch.rand(lists, n, generator=g) < 6 / n
    positives[::3] = False
    upstream = torch.randn(lists, n, generator=g).to(dtype)
    args = {"reduction": reduction, "power": 3, "lam": 0.2}
    assert_agree(x, positives, upstream, {"seed": 11, "multiprocessors": 2}, **args)


def test_more_lists_than_a_block_has_threads():
    x, positives, _ = sample(17, 6, 2, torch.float32, "normal", lists=520)
    positives[::3] = False
    args = {"lam": 1.0, "power": 1, "reduction": "mean"}
    with emulated(seed=6, multiprocessors=2):
        loss = rankreg_ext.rankreg_loss(x, positives, **args)
    expected = reference.rankreg_loss(x, positives, **args)
    torch.testing.assert_close(loss, expected, rtol=4 * torch.finfo(x.dtype).eps, atol=0)


def test_no_list_has_a_positive():
    x, positives, upstream = sample(0, 2500, 0, torch.float32, "special", lists=2)
    for reduction in ("none", "sum", "mean"):
        assert_agree(x, positives, upstream, {"multiprocessors": 1}, reduction=reduction, lam=1.0)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_at_all(shape, reduction):
    x = torch.zeros(shape)
    positives = torch.zeros(shape, dtype=torch.bool)
    assert_agree(x, positives, x.clone(), {}, reduction=reduction, lam=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [3, 256, 257])
@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_state(dtype, count, reduction):
    """The reduction's divisor, and the ranks in index order of at most 256 positives, or none."""
    x, positives, _ = sample(13, 9000, count, dtype, "tied", lists=3)
    positives[1] = False
    with emulated(seed=12, multiprocessors=1):
        _, state = torch.ops.rankreg_ext.rankreg_loss(
            x, positives, 1.0, None, 2, 1, None, reduction
        )
    expected = torch.zeros(3, 257, dtype=reference.rank_dtype(dtype, 9000))
    expected[:, 0] = 2 if reduction == 2 else 1
    if count <= 256:
        for b in range(3):
            ranks = reference.rank(x[b])[positives[b]]
            expected[b, 1 : 1 + len(ranks)] = ranks
    assert_equal(state, expected)


@pytest.mark.parametrize("power", [1, 5, 90])
def test_the_sum_of_terms_is_exact(power):
    """Terms of 2^53 and more, up to infinity, as rational numbers say."""
    n = 6000
    x, positives, _ = sample(14, n, 500, torch.float64, "normal")
    ranks = reference.rank(x)[positives].tolist()
    total = sum(Fraction(float(r) ** power) for r in map(int, ranks)) if power < 90 else None
    with emulated(seed=13, multiprocessors=1):
        loss = rankreg_ext.rankreg_loss(x, positives, lam=1.0, power=power)
    if total is None:
        assert_equal(loss, reference.rankreg_loss(x, positives, lam=1.0, power=power))
        return
    exact = float(total / (Fraction(n) ** power * 500))
    assert abs(loss.item() - exact) <= 4 * torch.finfo(torch.float64).eps * exact


def test_launches():
    """Two forward and two backward; three where more ranks may be needed than were kept."""
    for n, backward in ((200, 2), (5000, 3)):
        x, positives, upstream = sample(15, n, 10, torch.float32, "normal")
        x.requires_grad_()
        with emulated(multiprocessors=1) as module:
            counts = []

            def counted(f, module=module, counts=counts):
                before = module.launches()
                out = f()
                counts.append(module.launches() - before)
                return out

            ranks = counted(lambda: rankreg_ext.positive_ranks(x, positives, lam=1.0))  # noqa: B023
            counted(lambda: ranks.backward(upstream))  # noqa: B023
            loss = counted(lambda: rankreg_ext.rankreg_loss(x, positives, lam=1.0))  # noqa: B023
            counted(loss.backward)
        assert counts == [2, 2, 2, backward]


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_threads_and_blocks(seed):
    """And any number of blocks: the results are the same to the bit, the loss too."""
    x, positives, upstream = sample(16, 12_000, 40, torch.float32, "tied", lists=2)
    args = {"lam": 0.5, "loss_lam": 30.0}
    with emulated(seed=0, multiprocessors=1):
        expected = results(rankreg_ext, x, positives, upstream, **args)
    with emulated(seed=seed + 1, multiprocessors=1 + 3 * seed):
        actual = results(rankreg_ext, x, positives, upstream, **args)
    for name, value in expected.items():
        assert_equal(actual[name], value)


@settings(max_examples=60)
@given(case=cases())
def test_property(case: Case):
    args = {
        "lam": case.lam,
        "power": case.power,
        "normalize": case.normalize,
        "reduction": case.reduction,
        "where": case.where(),
    }
    gpu = {
        "seed": case.seed % 1000,
        "multiprocessors": 1 + case.seed % 3,
        "shared_most": TIGHT if case.seed % 2 else SPACIOUS,
    }
    assert_agree(case.scores(), case.positives(), case.upstream(), gpu, **args)


@pytest.mark.slow
def test_ranks_stay_exact_in_a_list_too_long_for_float32():
    n = 2**24 + 3
    scores = torch.arange(n, 0, -1, dtype=torch.float32)
    positives = torch.zeros(n, dtype=torch.bool)
    positives[-1] = True
    scores.requires_grad_()
    with emulated(multiprocessors=2):
        ranks = rankreg_ext.positive_ranks(scores, positives, lam=2.0**25)
        assert ranks.dtype == torch.float64
        assert ranks[-1] == n
        ranks[-1].backward()  # moves it to the top: n - 1 places
    assert scores.grad[-1] == torch.tensor(1.0 - n) / 2.0**25
    assert torch.equal(scores.grad[:-1], torch.full((n - 1,), 2.0**-25))
