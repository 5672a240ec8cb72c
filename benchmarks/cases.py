"""What is measured: the cases, each declared once, and the targets that some of them answer to.

Nothing here runs anything. A case is one line of data; :mod:`.ops` says what it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

VALUES = ("normal", "tied", "sorted", "reversed", "clustered", "separated")
NETWORKS = ("linear", "mlp", "cnn")  # of training_step, in place of a kind of values
DTYPES = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class Case:
    """One op on one kind of input.

    ``batch`` lists of ``n`` scores; ``positives`` of them in each list, 0 where the op knows none.
    """

    op: str
    batch: int
    n: int
    dtype: str = "float32"
    values: str = "normal"
    positives: int = 0

    @property
    def name(self) -> str:
        """For example ``positive_ranks/64x1024/float32/normal/P16``; filters match it."""
        positives = f"/P{self.positives}" if self.positives else ""
        return f"{self.op}/{self.batch}x{self.n}/{self.dtype}/{self.values}{positives}"

    @property
    def elements(self) -> int:
        return self.batch * self.n


MILLION = 1_000_000
# B x n: one list for latency, many for throughput, up to 4096 x 1024.
GRID = [
    *((1, n) for n in (64, 128, 256, 512, 1024, 4096, 16384, 100_000, MILLION)),
    *((64, n) for n in (32, 64, 128, 256, 1024, 4096, 16384)),
    *((1024, n) for n in (64, 128, 256, 1024, 4096)),
    *((4096, n) for n in (64, 128, 256, 1024)),
]
FEW = [(1, 256), (64, 128), (64, 1024), (1, MILLION)]
BACKWARD = [(1, 256), (64, 128), (1024, 128), (256, 256), (64, 1024), (16, 4096)]
BACKWARD += [(1, 100_000), (1, MILLION)]
POSITIVES = [1, 8, 32, 128, 512, 1024, 4096, 16384, 62_500, 250_000]  # the last two: n/16, n/4
GROWTH = [10_000, 100_000, MILLION, 10_000_000]
RARE = (8, 32, 128)


def standard() -> list[Case]:
    """The selection of ``make bench``."""
    return unique(
        # whole ranks
        *(Case("rank", b, n) for b, n in GRID),
        *(Case("rank", b, n, d) for d in DTYPES[1:] for b, n in [*FEW, (64, 16384)]),
        *(Case("rank", b, n, "float32", v) for v in VALUES[1:5] for b, n in FEW[1:]),
        *(Case("blackbox_backward", b, n) for b, n in BACKWARD),
        *(Case("blackbox_backward", 64, 1024, d) for d in DTYPES[1:]),
        *(Case("blackbox_backward", 64, 1024, "float32", v) for v in VALUES[1:5]),
        *(Case("blackbox_step", b, n) for b, n in [(1, 64), *FEW, (1, 1024), (4096, 1024)]),
        # a few positives among many
        *(Case("positive_ranks", 1, MILLION, positives=p) for p in POSITIVES),
        *(Case("positive_ranks_backward", 1, MILLION, positives=p) for p in POSITIVES),
        *(Case(f"positive_ranks{s}", 64, 1024, positives=16) for s in ("", "_backward")),
        *(Case("positive_ranks", 1, MILLION, "float32", v, p)
          for v in VALUES[1:] for p in (32, 4096)),
        *(Case("positive_ranks_backward", 1, MILLION, "float32", v, p)
          for v in ("clustered", "separated") for p in (32, 4096)),
        *(Case(f"positive_ranks{s}", 1, MILLION, d, positives=p)
          for s in ("", "_backward") for d in DTYPES[1:] for p in (32, 1024)),
        *(Case(f"rankreg_loss{s}", 1, n, positives=p)
          for n in GROWTH[:-1] for p in RARE for s in ("", "_backward")),
        *(Case(f"rankreg_loss{s}", b, 1024, positives=16)
          for s in ("", "_backward", "_step") for b in (64, 4096)),
        *(Case(f"rankreg_loss{s}", 1, 64, positives=8) for s in ("", "_backward")),
        *(Case("rankreg_loss_step", 1, n, positives=8) for n in (64, 256, 1024, MILLION)),
        # the baseline's hinges
        *(Case(f"hinge_violations{s}", b, n, positives=p)
          for s in ("", "_step") for b, n, p in ((1, 128, 4), (64, 1024, 16), (1, MILLION, 32))),
        # NumPy
        *(Case("rankdata", 1, n, d) for n in (10, 100, 1000, 10_000, 100_000, MILLION)
          for d in ("float32", "float64")),
        Case("rankdata", 64, 1024, "float64"),
        Case("rankdata", 1, MILLION, "float64", "tied"),
        # what a training loop pays
        Case("training_step", 1, 128, values="cnn", positives=4),
        Case("training_step", 1, 1024, values="mlp", positives=16),
        Case("training_step", 1, 16384, values="linear", positives=128),
    )  # fmt: skip


def full() -> list[Case]:
    """The standard selection and lists up to 1e8; needs 6 GiB of memory."""
    huge = 100 * MILLION
    return unique(
        *standard(),
        *(Case("rank", 1, n) for n in (10 * MILLION, huge)),
        *(Case("blackbox_backward", 1, n) for n in (10 * MILLION,)),
        *(Case(f"rankreg_loss{s}", 1, n, positives=p)
          for n in (GROWTH[-1], huge) for p in RARE for s in ("", "_backward")),
        *(Case("positive_ranks", 1, n, positives=32) for n in (*GROWTH, huge)),
        *(Case("rankdata", 1, 10 * MILLION, d) for d in ("float64", "float32")),
    )  # fmt: skip


def quick() -> list[Case]:
    """One small case of every op: a minute, to see that everything runs."""
    return [
        Case("rank", 1, 256),
        Case("rank", 64, 128),
        Case("blackbox_backward", 64, 128),
        Case("blackbox_step", 1, 256),
        Case("positive_ranks", 1, 10_000, positives=8),
        Case("positive_ranks_backward", 1, 10_000, positives=8),
        Case("rankreg_loss", 1, 10_000, positives=8),
        Case("rankreg_loss_backward", 1, 10_000, positives=8),
        Case("rankreg_loss_step", 1, 256, positives=8),
        Case("hinge_violations", 1, 10_000, positives=8),
        Case("hinge_violations_step", 1, 256, positives=8),
        Case("rankdata", 1, 1000, "float64"),
        Case("training_step", 1, 1024, values="mlp", positives=16),
    ]


# ------------------------------------------------------------------------------------------ on CUDA

HUGE = 100 * MILLION
# Large batches: some 8 million scores of short lists, 16 million of others, beyond any L2.
WIDE = [(262_144, 32), (131_072, 64), (65_536, 128)]
TALL = [(16_384, 1024), (4096, 4096)]
RARE_CUDA = (*RARE, 1024)


def cuda_quick() -> list[Case]:
    """What the targets speak of; those first that a run cut short must not miss."""
    return unique(
        *(Case("rank", b, n) for b, n in [*TALL, WIDE[-1], WIDE[0], (1, MILLION), (1, 256)]),
        *(Case("blackbox_backward", b, n) for b, n in [*TALL, WIDE[-1], (1, MILLION)]),
        *(Case(f"rankreg_loss{s}", 1, n, positives=p)
          for s in ("", "_backward") for n in (HUGE, MILLION) for p in RARE),
        Case("rankreg_loss_step", 1, 256, positives=8),
        Case("blackbox_step", 1, 256),
        *(Case("positive_ranks", 1, n, positives=p)
          for n in (HUGE, MILLION) for p in RARE_CUDA if (n, p) != (HUGE, 128)),
        *(Case("positive_ranks_backward", 1, HUGE, positives=p) for p in RARE),
    )  # fmt: skip


def cuda_standard() -> list[Case]:
    """More shapes, dtypes and kinds of scores; minutes."""
    few = [(65_536, 128), (16_384, 1024), (1, MILLION)]
    return unique(
        *cuda_quick(),
        *(Case("rank", b, n) for b, n in [*WIDE, *GRID]),
        *(Case("rank", b, n) for b, n in [(8192, 2048), (1024, 16_384), (256, 65_536)]),
        *(Case("rank", b, n, d) for d in DTYPES[1:] for b, n in [*few, (4096, 4096)]),
        *(Case("rank", b, n, "float32", v) for v in VALUES[1:5] for b, n in few),
        *(Case("blackbox_backward", b, n) for b, n in [*WIDE, *BACKWARD, (1024, 16_384)]),
        *(Case("blackbox_backward", b, n, d) for d in DTYPES[1:] for b, n in few),
        *(Case("blackbox_step", b, n) for b, n in [(1, 1024), (64, 1024), (4096, 1024)]),
        *(Case(f"{op}{s}", 1, n, positives=p) for op in ("positive_ranks", "rankreg_loss")
          for s in ("", "_backward") for n in (MILLION, HUGE) for p in (*RARE_CUDA, 16_384)),
        *(Case(f"positive_ranks{s}", 1, MILLION, "float32", v, p)
          for s in ("", "_backward") for v in VALUES[1:] for p in (32, 4096)),
        *(Case(f"rankreg_loss{s}", 1, HUGE, "float32", "separated", p)
          for s in ("", "_backward") for p in (32, 1024)),
        *(Case(f"rankreg_loss{s}", 1, HUGE, "bfloat16", positives=p)
          for s in ("", "_backward") for p in (32, 1024)),
        *(Case(f"rankreg_loss{s}", b, 1024, positives=16)
          for s in ("", "_backward", "_step") for b in (64, 4096, 16_384)),
        *(Case("rankreg_loss_step", 1, n, positives=8) for n in (1024, MILLION)),
        *(Case(f"hinge_violations{s}", b, n, positives=p) for s in ("", "_step")
          for b, n, p in ((1, 128, 4), (64, 1024, 16), (1, MILLION, 32), (1, 100_000, 10_000))),
    )  # fmt: skip


def cuda_full() -> list[Case]:
    """The standard selection, long lists ranked as a whole, and n/16 positives of 1e8."""
    return unique(
        *cuda_standard(),
        *(Case(op, 1, n) for op in ("rank", "blackbox_backward") for n in (10 * MILLION, HUGE)),
        *(Case(f"{op}{s}", 1, HUGE, positives=HUGE // 16)
          for op in ("positive_ranks", "rankreg_loss") for s in ("", "_backward")),
        *(Case(f"rankreg_loss{s}", 1, n, positives=32)
          for s in ("", "_backward") for n in GROWTH),
    )  # fmt: skip


SELECTIONS = {
    "cpu": {"quick": quick, "standard": standard, "full": full},
    "cuda": {"quick": cuda_quick, "standard": cuda_standard, "full": cuda_full},
}


def unique(*cases: Case) -> list[Case]:
    """The cases without repetitions, those of one op together."""
    seen = dict.fromkeys(cases)
    ops = dict.fromkeys(case.op for case in seen)
    return [case for op in ops for case in seen if case.op == op]


def select(
    cases: Iterable[Case],
    *,
    ops: Iterable[str] = (),
    dtypes: Iterable[str] = (),
    shapes: Iterable[str] = (),
    match: str | None = None,
) -> list[Case]:
    """The cases that pass every filter given; a shape is ``BxN``, ``match`` a regular expression.

    Raises:
        ValueError: if a filter passes none of them, and so is probably misspelt.
    """
    kept = list(cases)
    filters = {
        "op": (set(ops), lambda case: case.op),
        "dtype": (set(dtypes), lambda case: case.dtype),
        "shape": (set(shapes), lambda case: f"{case.batch}x{case.n}"),
    }
    for name, (wanted, key) in filters.items():
        if unknown := wanted - {key(case) for case in kept}:
            known = ", ".join(sorted({key(case) for case in kept}))
            raise ValueError(f"no case has {name} {sorted(unknown)}; there are {known}")
        kept = [case for case in kept if not wanted or key(case) in wanted]
    if match is not None:
        kept = [case for case in kept if re.search(match, case.name)]
    if not kept:
        raise ValueError("no case passes all filters")
    return kept


# ---------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Target:
    """A figure to reach, on one core.

    The measure is, by ``unit``: "ns/element" and "us/call", of every case alone; "x forward", the
    time of the case over that of ``rank`` on the same shape; "x spread", the slowest of the cases
    over the fastest, per element; "B/element", peak memory beyond the inputs and the outputs.
    """

    name: str
    cases: tuple[Case, ...]
    unit: str
    limit: float
    limits: tuple[tuple[str, float], ...] = ()  # on an instruction set that has a limit of its own
    provider: str = "rankreg_ext"

    def on(self, isa: str) -> float:
        return dict(self.limits).get(isa, self.limit)


UNITS = ("ns/element", "us/call", "x forward", "x spread", "B/element")


def _many(op: str, *shapes: tuple[int, int], positives: int = 0) -> tuple[Case, ...]:
    return tuple(Case(op, b, n, positives=positives) for b, n in shapes)


def _rare(name: str, op: str, limits: tuple[float, ...]) -> list[Target]:
    return [
        Target(f"{name}, P = {p}", _many(op, (1, MILLION), positives=p), "ns/element", limit)
        for p, limit in zip(RARE, limits, strict=True)
    ]


_SMALL = [(64, 32), (1024, 64), (64, 128), (1024, 128)]
_MIDDLE = [(1024, 256), (64, 1024), (4096, 1024), (64, 4096), (1024, 4096)]
_FORWARD_AND_BACKWARD = [(64, 128), (1024, 128), (64, 1024), (1, 100_000), (1, MILLION)]
_MANY_POSITIVES = (1024, 4096, 16384, 62_500)

TARGETS: tuple[Target, ...] = (
    Target("rank, n <= 128", _many("rank", *_SMALL), "ns/element", 2.5, (("avx512", 1.8),)),
    Target("rank, 256 <= n <= 4096", _many("rank", *_MIDDLE), "ns/element", 3.5),
    Target("rank, n = 1024, stretch", _many("rank", (64, 1024)), "ns/element", 2.3),
    Target("rank, n = 1e5, 1e6", _many("rank", (1, 100_000), (1, MILLION)), "ns/element", 4.5),
    Target("blackbox backward",
           _many("blackbox_backward", *_FORWARD_AND_BACKWARD), "x forward", 1.15),
    *_rare("rare positives, ranks", "positive_ranks", (0.1, 0.4, 1.5)),
    *_rare("rare positives, loss", "rankreg_loss", (0.1, 0.4, 1.5)),
    *_rare("rare positives, ranks' backward", "positive_ranks_backward", (0.25, 0.85, 3.0)),
    *_rare("rare positives, loss's backward", "rankreg_loss_backward", (0.25, 0.85, 3.0)),
    Target("P = 1024 .. n/16",
           tuple(Case("positive_ranks", 1, MILLION, positives=p) for p in _MANY_POSITIVES),
           "ns/element", 3.0),
    Target("P = 1024 .. n/16, flat in P",
           tuple(Case("positive_ranks", 1, MILLION, positives=p) for p in _MANY_POSITIVES),
           "x spread", 1.3),
    Target("one call, n = 256, loss forward and backward",
           _many("rankreg_loss_step", (1, 256), positives=8), "us/call", 15.0),
    Target("one call, n = 256, blackbox forward and backward",
           _many("blackbox_step", (1, 256)), "us/call", 15.0),
    Target("one call from NumPy, rankdata", _many("rankdata", (1, 10)), "us/call", 2.0),
    Target("one call from NumPy, rank", _many("rank", (1, 64)), "us/call", 2.0,
           provider="rankreg_ext.arrays"),
    Target("one call from NumPy, loss", _many("rankreg_loss", (1, 64), positives=8), "us/call",
           2.0, provider="rankreg_ext.arrays"),
    *(Target(f"growth of time / n, 1e4 to 1e8, {what}, P = {p}",
             _many(op, *((1, n) for n in (*GROWTH, 100 * MILLION)), positives=p), "x spread", 1.3)
      for what, op in (("loss", "rankreg_loss"), ("its backward", "rankreg_loss_backward"))
      for p in RARE),
    Target("scratch memory, rank, n = 1e6", _many("rank", (1, MILLION)), "B/element", 16.0),
    Target("scratch memory, rare positives, n = 1e6",
           tuple(Case(f"rankreg_loss{s}", 1, MILLION, positives=p)
                 for s in ("", "_backward") for p in RARE), "B/element", 0.1),
)  # fmt: skip


@dataclass(frozen=True)
class CudaTarget:
    """A figure to reach on one H100; of every case alone.

    The measure is, by ``unit``: "us", microseconds per call; "Gelem/s", scores per nanosecond; "of
    copy", the least bytes that any method must move in that time over those that a copy within
    device memory reads and writes; "of forward", the rate over that of ``rank`` on the same shape.
    The time is that of the device, or, if ``eager``, of eager calls one after another.
    """

    name: str
    cases: tuple[Case, ...]
    unit: str
    limit: float
    eager: bool = False

    def met(self, value: float) -> bool:
        return value <= self.limit if self.unit == "us" else value >= self.limit


CUDA_UNITS = ("us", "Gelem/s", "of copy", "of forward")


def _each(op: str, n: int, positives: Iterable[int], *suffixes: str) -> tuple[Case, ...]:
    return tuple(Case(op + s, 1, n, positives=p) for s in suffixes or ("",) for p in positives)


CUDA_TARGETS: tuple[CudaTarget, ...] = (
    CudaTarget("rank, n <= 128, large batch", _many("rank", *WIDE), "of copy", 0.7),
    CudaTarget("rank, n = 1024, large batch", _many("rank", TALL[0]), "Gelem/s", 40),
    CudaTarget("rank, n = 4096, large batch", _many("rank", TALL[1]), "Gelem/s", 30),
    CudaTarget("rank, one list of 1e6", _many("rank", (1, MILLION)), "us", 60),
    CudaTarget("blackbox backward",
               _many("blackbox_backward", WIDE[-1], *TALL, (1, MILLION)), "of forward", 0.8),
    *(CudaTarget(f"rare positives, {what}, n = 1e8", _each(op, HUGE, (8, 32)), "of copy", 0.8)
      for what, op in (("ranks", "positive_ranks"), ("loss", "rankreg_loss"))),
    *(CudaTarget(f"rare positives, {what}, n = 1e6", _each(op, MILLION, RARE), "us", 10)
      for what, op in (("ranks", "positive_ranks"), ("loss", "rankreg_loss"))),
    CudaTarget("P = 1024 .. n/16, n = 1e8",
               _each("positive_ranks", HUGE, (1024, 16_384, HUGE // 16)), "of copy", 0.5),
    *(CudaTarget(f"rare positives, {what}, n = 1e8", _each(op, HUGE, RARE), "of copy", 0.7)
      for what, op in (("ranks' backward", "positive_ranks_backward"),
                       ("loss's backward", "rankreg_loss_backward"))),
    *(CudaTarget(f"one call, n = 256, {what} forward and backward{how}",
                 (case,), "us", limit, eager)
      for what, case in (("loss", Case("rankreg_loss_step", 1, 256, positives=8)),
                         ("blackbox", Case("blackbox_step", 1, 256)))
      for how, limit, eager in ((", eager", 25, True), (", in a graph", 6, False))),
)  # fmt: skip
