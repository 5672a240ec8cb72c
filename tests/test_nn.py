"""nn.RankReg against the functional form, and the score memory against a plain deque."""

import copy
import gc
import pickle
import weakref
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rankreg_ext import rankreg_loss
from rankreg_ext.nn import RankReg, ScoreMemory

NAN, INF = float("nan"), float("inf")


def tensor(*values, **kwargs):
    return torch.tensor(values, **kwargs)


def flags(text: str) -> torch.Tensor:
    """'+--' is one positive and two negatives."""
    return torch.tensor([c == "+" for c in text], dtype=torch.bool)


def run(term: nn.Module, scores, positives, where=None):
    """Value and gradient."""
    scores = scores.detach().clone().requires_grad_()
    value = term(scores, positives, where)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    return value.detach(), gradient


def random_batches(count: int, n: int = 12, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        scores = torch.randint(-6, 7, (n,), generator=generator).to(dtype) / 4
        yield scores, torch.rand(n, generator=generator) < 0.2


# --- without a memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", ["length", "none"])
@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_is_alpha_times_the_loss(reduction, normalize, power, dtype):
    torch.manual_seed(0)
    scores, positives = torch.randn(3, 10).to(dtype), torch.rand(3, 10) < 0.3
    where = torch.rand(3, 10) < 0.9
    settings = {"lam": 2.0, "power": power, "normalize": normalize, "reduction": reduction}
    value, gradient = run(RankReg(alpha=0.5, **settings), scores, positives, where)
    expected, unweighted = run(
        lambda s, p, w: rankreg_loss(s, p, where=w, **settings), scores, positives, where
    )
    assert value.shape == expected.shape
    assert torch.equal(value, 0.5 * expected)
    assert torch.equal(gradient, 0.5 * unweighted)  # a power of two: exact
    assert gradient.count_nonzero()


def test_by_hand():
    # The positive 0 has rank 3 of 4: h = 2 * 3/4 / 1, and 0 + 1 * 1.5 is above 0.5 and 1.
    value, gradient = run(RankReg(alpha=8.0, lam=1.0), tensor(0.0, 1.0, 0.5, -1.0), flags("+---"))
    assert value.item() == 8 * (3 / 4) ** 2
    assert gradient.tolist() == [8 * -2 / 4, 8 * 1 / 4, 8 * 1 / 4, 0.0]


@pytest.mark.parametrize("memory", [None, "positives", "negatives", "all"])
@pytest.mark.parametrize("n", [0, 5])
def test_no_positive_gives_a_differentiable_zero(memory, n):
    term = RankReg(memory=memory and ScoreMemory(8, keep=memory))
    for _ in range(2):
        scores = torch.randn(n, requires_grad=True)
        value = term(scores, torch.zeros(n, dtype=torch.bool))
        assert value.shape == () and value.item() == 0 and value.requires_grad
        value.backward()
        assert torch.equal(scores.grad, torch.zeros(n))


def test_weights_may_change_between_steps():
    scores, positives = next(random_batches(1))
    term = RankReg(alpha=1.0, lam=0.5)
    term.alpha, term.lam = 0.25, 3.0
    for a, b in zip(
        run(term, scores, positives), run(RankReg(0.25, 3.0), scores, positives), strict=True
    ):
        assert torch.equal(a, b)
    term.lam = -1.0
    with pytest.raises(ValueError, match="lam must be positive"):
        term(scores, positives)


def test_tensor_weights_equal_floats():
    for scores, positives in random_batches(5):
        expected = run(RankReg(0.25, 3.0), scores, positives)
        term = RankReg(torch.tensor(0.25), torch.tensor(3.0))
        for a, b in zip(run(term, scores, positives), expected, strict=True):
            assert torch.equal(a, b)


def test_repr_names_every_setting():
    term = RankReg(0.5, 2.0, 3, "none", "sum", memory=ScoreMemory(7, keep="all", max_age=4))
    text = repr(term)
    assert "alpha=0.5, lam=2.0, power=3, normalize='none', reduction='sum'" in text
    assert "capacity=7, keep='all', max_age=4" in text


def test_has_no_state_without_a_memory():
    assert not RankReg().state_dict() and not list(RankReg().parameters())


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("alpha", -0.1, ValueError, "alpha must be a finite number of at least 0 .*got -0.1"),
        ("alpha", NAN, ValueError, "alpha must be a finite .*got nan"),
        ("alpha", INF, ValueError, "alpha must be a finite .*got inf"),
        ("alpha", "1", TypeError, "alpha must be .*got str"),
        ("alpha", True, TypeError, "alpha must be .*got bool"),
        ("alpha", torch.ones(2), ValueError, r"alpha must be .*0-dim.*got shape \(2,\)"),
        ("lam", 0.0, ValueError, "lam must be positive and finite, got 0.0"),
        ("lam", -1, ValueError, "lam must be positive and finite, got -1"),
        ("lam", NAN, ValueError, "lam must be positive and finite, got nan"),
        ("lam", None, TypeError, "lam must be a float .*got NoneType"),
        ("lam", torch.ones(1), ValueError, r"lam must be .*0-dim.*got shape \(1,\)"),
        ("power", 0, ValueError, "power must be an integer of at least 1, got 0"),
        ("power", 2.0, TypeError, "power must be an integer of at least 1, got 2.0"),
        ("normalize", "n", ValueError, "normalize must be one of .*got 'n'"),
        ("reduction", "avg", ValueError, "reduction must be one of .*got 'avg'"),
        ("memory", 100, TypeError, "memory must be None or a ScoreMemory, got int"),
    ],
)
def test_bad_settings(argument, value, error, message):
    with pytest.raises(error, match=f"^RankReg: {message}"):
        RankReg(**{argument: value})


# --- the memory -----------------------------------------------------------------------------------


class PlainMemory:
    """What ScoreMemory is, in plain Python."""

    def __init__(self, capacity, keep, max_age):
        self.entries = deque(maxlen=capacity)
        self.keep, self.max_age, self.step = keep, max_age, 0

    def valid(self):
        oldest = -1 if self.max_age is None else self.step - self.max_age
        return [(s, p) for s, p, time in self.entries if time >= oldest]

    def append(self, scores, positives, where):
        for s, p, w in zip(scores.tolist(), positives.tolist(), where.tolist(), strict=True):
            if w and s == s and self.keep in ("all", "positives" if p else "negatives"):
                self.entries.append((s, p, self.step))
        self.step += 1


@st.composite
def histories(draw):
    def batch():
        n = draw(st.integers(0, 9))
        row = lambda values: draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))  # noqa: E731
        scores = row([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0, INF, -INF, NAN])
        return (
            torch.tensor(scores),
            torch.tensor(row([False, False, True]), dtype=torch.bool),
            torch.tensor(row([True, True, True, False]), dtype=torch.bool),
        )

    memory = {
        "capacity": draw(st.integers(1, 12)),
        "keep": draw(st.sampled_from(["positives", "negatives", "all"])),
        "max_age": draw(st.none() | st.integers(1, 3)),
    }
    return memory, [(*batch(), draw(st.booleans())) for _ in range(draw(st.integers(1, 6)))]


@settings(max_examples=300, deadline=None)
@given(histories())
def test_memory_equals_a_deque(history):
    arguments, batches = history
    plain = PlainMemory(**arguments)
    memory = ScoreMemory(arguments.pop("capacity"), **arguments)
    term = RankReg(alpha=2.0, lam=1.5, memory=memory)
    for scores, positives, where, training in batches:
        past = plain.valid()
        past_scores = torch.tensor([s for s, _ in past])
        past_positives = torch.tensor([p for _, p in past], dtype=torch.bool)
        expected, gradient = run(
            lambda s, p, w, more=past_scores, flags=past_positives: rankreg_loss(
                torch.cat([s, more]),
                torch.cat([p, flags]),
                lam=1.5,
                where=torch.cat([w, torch.ones_like(flags)]),
            ),
            scores,
            positives,
            where,
        )
        copies = [t.clone() for t in (scores, positives, where)]
        term.train(training)
        value, actual = run(term, scores, positives, where)
        for given_tensor, before in zip((scores, positives, where), copies, strict=True):
            assert torch.allclose(given_tensor, before, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(value, 2 * expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(actual, 2 * gradient, rtol=0, atol=0, equal_nan=True)

        if training:
            plain.append(scores, positives, where)
        valid = memory.valid()
        assert memory.scores[valid].tolist() == [s for s, _ in plain.valid()]
        assert memory.positives[valid].tolist() == [p for _, p in plain.valid()]
        assert memory.step.item() == plain.step


def test_remembered_positives_push_negatives_down_without_a_live_positive():
    term = RankReg(alpha=1.0, lam=1.0, normalize="none", power=1, memory=ScoreMemory(4))
    term(tensor(0.0, -5.0), flags("+-"))
    assert term.memory.valid().sum() == 1
    # The remembered 0 moves to 0 + 1 * 1: past 0.5, not past 3. The value is its rank.
    value, gradient = run(term, tensor(0.5, 3.0, -1.0), flags("---"))
    assert value.item() == 3
    assert gradient.tolist() == [1.0, 0.0, 0.0]


def test_remembered_positives_count_in_the_mean():
    # h = 1 / |P|: a positive that alone gets past 0.75 stops short of it in company.
    def places(memory):
        term = RankReg(alpha=1.0, lam=1.0, normalize="none", power=1, memory=memory)
        term(tensor(9.0, 9.0, 9.0), flags("+++"))
        return -run(term, tensor(0.0, 0.75), flags("+-"))[1][0].item()

    assert places(None) == 1 and places(ScoreMemory(8)) == 0


def test_remembered_negatives_bring_the_next_place_nearer():
    def places(memory):
        term = RankReg(alpha=1.0, lam=1.0, normalize="none", power=1, memory=memory)
        term(tensor(0.5, 0.75), flags("--"))
        return -run(term, tensor(0.0, 2.0), flags("+-"))[1][0].item()

    assert places(None) == 0  # 0 + 1 does not reach 2
    assert places(ScoreMemory(8, keep="negatives")) == 2
    term = RankReg(memory=ScoreMemory(8, keep="negatives"))
    term(tensor(0.5, 0.75), flags("--"))
    value, gradient = run(term, tensor(0.0, 2.0), flags("--"))
    assert value.item() == 0 and not gradient.any()


def test_memory_keeps_the_last_items_of_a_large_batch():
    memory = ScoreMemory(3, keep="all")
    memory.append(torch.arange(10.0), flags("-" * 9 + "+"))
    assert memory.scores.tolist() == [7, 8, 9] and memory.positives.tolist() == [False, False, True]
    memory.append(tensor(20.0), flags("-"))
    assert memory.scores.tolist() == [8, 9, 20]


def test_reset_and_eval():
    term = RankReg(memory=ScoreMemory(6, keep="all", max_age=2))
    batches = list(random_batches(4))
    first = [run(term, *batch)[0] for batch in batches]
    state = copy.deepcopy(term.state_dict())
    term.eval()
    for batch in batches:
        run(term, *batch)
    assert all(torch.equal(v, state[k]) for k, v in term.state_dict().items())
    term.train()
    term.memory.reset()
    fresh = RankReg(memory=ScoreMemory(6, keep="all", max_age=2)).state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in term.state_dict().items())
    assert torch.equal(torch.stack([run(term, *batch)[0] for batch in batches]), torch.stack(first))


def test_stores_no_graph_and_keeps_no_batch_alive():
    term = RankReg(memory=ScoreMemory(6, keep="all"))
    scores = torch.randn(4, requires_grad=True) * 1
    alive = weakref.ref(scores)
    term(scores, flags("+---")).backward()
    assert not term.memory.scores.requires_grad
    del scores
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_goes_on_from_a_copy(way, tmp_path):
    term = RankReg(0.5, 2.0, memory=ScoreMemory(20, keep="all", max_age=3))
    *before, last = random_batches(6)
    for batch in before:
        term(*batch)
    if way == "state_dict":
        torch.save(term.state_dict(), tmp_path / "state")
        copied = RankReg(0.5, 2.0, memory=ScoreMemory(20, keep="all", max_age=3))
        copied.load_state_dict(torch.load(tmp_path / "state"))
    else:
        copied = copy.deepcopy(term) if way == "deepcopy" else pickle.loads(pickle.dumps(term))
    expected = run(term, *last)
    for a, b in zip(run(copied, *last), expected, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(v, term.state_dict()[k]) for k, v in copied.state_dict().items())
    fresh = run(RankReg(0.5, 2.0), *last)
    assert not torch.equal(fresh[0], expected[0])  # the memory matters at all


def test_copies_are_independent():
    term = RankReg(memory=ScoreMemory(4, keep="all"))
    copied = copy.deepcopy(term)
    copied(tensor(1.0, 2.0), flags("+-"))
    assert copied.memory.valid().sum() == 2 and not term.memory.valid().any()


def test_state_of_another_capacity_is_refused():
    state = RankReg(memory=ScoreMemory(4)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        RankReg(memory=ScoreMemory(5)).load_state_dict(state)


def test_double_memory_does_not_round():
    precise = tensor(1 + 2**-40, 1.0, dtype=torch.float64)
    for convert, rank in ((lambda t: t.double(), 2), (lambda t: t, 1)):
        term = convert(RankReg(1.0, normalize="none", memory=ScoreMemory(4, keep="negatives")))
        term(precise[:1], flags("-"))
        assert term(precise[1:], flags("+")).item() == rank**2


@pytest.mark.parametrize("keep", [None, "positives", "negatives", "all"])
def test_under_autocast(keep):
    torch.manual_seed(0)
    layer, x, positives = nn.Linear(4, 1), torch.randn(32, 4), torch.rand(32) < 0.2
    term = RankReg(memory=keep and ScoreMemory(16, keep=keep))
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = layer(x).squeeze(1)
            value = term(logits, positives)
        assert logits.dtype == torch.bfloat16 and value.dtype == torch.float32
        layer.zero_grad()
        value.backward()
        assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("keep", [None, "positives", "negatives", "all"])
def test_compiles_without_a_break(keep, backend):
    torch._dynamo.reset()
    term = RankReg(0.5, 2.0, memory=keep and ScoreMemory(20, keep=keep, max_age=3))
    same = copy.deepcopy(term)
    compiled = torch.compile(same, fullgraph=True, backend=backend)
    for batch in random_batches(5):
        for a, b in zip(run(compiled, *batch), run(term, *batch), strict=True):
            assert torch.equal(a, b)
    for key, value in term.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])


def test_tensor_weights_are_scheduled_without_compiling_anew():
    torch._dynamo.reset()
    compilations = torch._dynamo.testing.CompileCounter()
    alpha, lam = torch.tensor(0.5), torch.tensor(1.0)
    term = RankReg(alpha, lam, memory=ScoreMemory(8, keep="all"))
    compiled = torch.compile(term, fullgraph=True, backend=compilations)
    for step, (scores, positives) in enumerate(random_batches(4)):
        alpha.fill_(0.1 * step)
        lam.fill_(1.0 + step)
        compiled(scores, positives)
    assert compilations.frame_count == 1


def test_functional_transforms():
    scores, positives = torch.randn(3, 7), torch.rand(3, 7) < 0.4
    term = RankReg(0.5, 2.0, reduction="sum")
    _, expected = run(term, scores, positives)
    assert torch.equal(torch.func.grad(term)(scores, positives), expected)
    assert torch.equal(torch.func.vmap(torch.func.grad(term))(scores, positives), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moves_to_a_device():
    term = RankReg(memory=ScoreMemory(20, keep="all", max_age=3)).cuda()
    plain = RankReg(memory=ScoreMemory(20, keep="all", max_age=3))
    for scores, positives in random_batches(5):
        actual = run(term, scores.cuda(), positives.cuda())
        for a, b in zip(actual, run(plain, scores, positives), strict=True):
            assert torch.equal(a.cpu(), b)
    with pytest.raises(ValueError, match="scores must be on the device of the memory, cuda:0"):
        term(scores, positives)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity must be an integer of at least 1, got 0"),
        ({"capacity": 1.5}, TypeError, "capacity must be an integer of at least 1, got 1.5"),
        ({"capacity": True}, TypeError, "capacity must be an integer"),
        ({"capacity": 4, "keep": "both"}, ValueError, "keep must be one of .*got 'both'"),
        ({"capacity": 4, "max_age": 0}, ValueError, "max_age must be .*at least 1, got 0"),
        ({"capacity": 4, "max_age": 2.0}, TypeError, "max_age must be an integer"),
    ],
)
def test_bad_memory(arguments, error, message):
    with pytest.raises(error, match=f"^ScoreMemory: {message}"):
        ScoreMemory(**arguments)


@pytest.mark.parametrize(
    ("scores", "positives", "where", "error", "message"),
    [
        ([0.0], flags("+"), None, TypeError, "scores must be a torch.Tensor, got list"),
        (torch.zeros(2, 3), flags("+--"), None, ValueError, r"1 dimension, .*got shape \(2, 3\)"),
        (torch.zeros(3, 1), flags("+"), None, ValueError, r"1 dimension, .*got shape \(3, 1\)"),
        (torch.tensor(0.0), flags("+"), None, ValueError, "at least 1 dimension"),
        (torch.zeros(3, dtype=torch.int64), flags("+--"), None, TypeError, "scores .*torch.int64"),
        (torch.zeros(3), torch.zeros(3), None, TypeError, "positives must have dtype torch.bool"),
        (torch.zeros(3), flags("+-"), None, ValueError, r"positives must be broadcastable.*\(2,\)"),
        (torch.zeros(3), flags("+--"), torch.ones(3), TypeError, "where must have dtype"),
        (torch.zeros(3), flags("+--"), flags("++"), ValueError, "where must be broadcastable"),
    ],
)
def test_bad_batches_are_refused_and_not_stored(scores, positives, where, error, message):
    term = RankReg(memory=ScoreMemory(4, keep="all"))
    with pytest.raises(error, match=message):
        term(scores, positives, where)
    assert term.memory.step == 0 and not term.memory.valid().any()
    with pytest.raises(error, match=message):
        term.memory.append(scores, positives, where)


def test_bad_batches_without_a_memory():
    with pytest.raises(TypeError, match=r"positives must have dtype torch\.bool"):
        RankReg()(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="at least 1 dimension"):
        RankReg()(torch.tensor(0.0), torch.tensor(True))
