"""The Triton kernels compile for GPUs, within bounds, and round where they say; no GPU is needed.

What TRITON_INTERPRET=1 tests is arithmetic as Python does it; what a GPU is given is tested here.
"""

import itertools
import os
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs Triton, though no GPU")

import triton.language as tl  # noqa: E402
from rankreg_ext.triton_kernels import host  # noqa: E402
from rankreg_ext.triton_kernels.common import divide, perturb, read_lam  # noqa: E402

from benchmarks import triton_resources as resources  # noqa: E402
from benchmarks.triton_resources import Case, Launch  # noqa: E402
from rankreg_ext import reference  # noqa: E402

# What every block has without asking for more; gfx942 has 64 KiB in all.
MOST_SHARED = 48 * 1024
# Up to 255 a thread on NVIDIA GPUs; 512 on gfx942, of which Triton uses half.
MOST_REGISTERS = 255
# Bytes of a thread: a few counters of a stream, whose loop is over blocks of items, lie there.
MOST_LOCAL = 48
AVERAGE = reference.TIES.index("average")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """What an earlier run compiled would be found, and nothing be tested."""
    assert os.environ.get("TRITON_INTERPRET") != "1", "an interpreted kernel is never compiled"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


# --- what the checks see --------------------------------------------------------------------------


@triton.jit
def contracted_kernel(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, a + b * b)


@triton.jit
def subtracted_kernel(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, -(a * b) - b)


@triton.jit
def summed_kernel(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out, tl.sum(a * b, 0))


@triton.jit
def fused_kernel(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, tl.fma(a, b, b))


@triton.jit
def divided_kernel(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) / tl.load(y + i))


@triton.jit
def exponential_kernel(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.exp(tl.load(x + i)))


@triton.jit
def sound_kernel(x, y, out, lam, BLOCK: tl.constexpr):
    """The formulas of common.py, and a product that no sum reads."""
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    lam = read_lam(lam, a.dtype)
    moved = perturb(a, lam, b, True) + perturb(b, lam, a, False)
    tl.store(out + i, divide(moved, lam) * b)


@triton.jit
def crowded_kernel(x, y, out, BLOCK: tl.constexpr):
    """All of the items are there twice: when their sum is known, and until then."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    tl.store(out + i, a * tl.sum(a, 0))


@triton.jit
def unequal_kernel(x, y, out, BLOCK: tl.constexpr):
    """Two shapes of one name: the interpreter has nothing against it."""
    i = tl.arange(0, BLOCK)
    if tl.load(y) > 0:
        i = tl.arange(0, 2 * BLOCK)
    tl.store(out + i, tl.load(x + i))


def compiled(kernel, dtype, target, *more, block=128, **options):
    x = torch.empty(2 * block, dtype=dtype, device="meta")
    options = {"BLOCK": block, **options}
    launch = Launch(kernel, (x, x, x, *more), options)
    return resources.compile_variant(resources.variant(launch, target), target)


@pytest.mark.parametrize("target", resources.TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kernel", [contracted_kernel, subtracted_kernel, summed_kernel, fused_kernel]
)
def test_a_contraction_is_found(kernel, dtype, target):
    found = compiled(kernel, dtype, target).findings
    assert any("a product that a sum reads" in f or "fma with an addend" in f for f in found), found


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", [divided_kernel, exponential_kernel])
def test_an_approximation_is_found(kernel, target):
    found = compiled(kernel, torch.float32, target).findings
    assert any("an approximation" in f for f in found), found


@pytest.mark.parametrize("target", resources.TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_formulas_pass(dtype, target):
    lam = host.lam_argument(0.3, None, torch.empty(0))
    assert compiled(sound_kernel, dtype, target, lam).findings == ()


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_contraction_by_ptxas_is_found(target):
    """As if LLVM had left a product and a sum to it, without the words that forbid it."""
    x = torch.empty(256, device="meta")
    variant = resources.variant(Launch(contracted_kernel, (x, x, x), {"BLOCK": 128}), target)
    variant = replace(variant, options=(("enable_fp_fusion", False),))
    ptx = resources.assembled(variant, target)[0]["ptx"]
    assert "mul.rn.f32" in ptx and not resources.is_contracted_by_ptxas(ptx)
    permitted = ptx.replace("mul.rn.f32", "mul.f32").replace("add.rn.f32", "add.f32")
    assert resources.in_ptx(permitted) == []
    assert resources.is_contracted_by_ptxas(permitted)
    # What stands apart in the source stays apart, though ptxas has permission.
    apart = permitted.replace("mul.f32", "mul.rn.f32")
    assert not resources.is_contracted_by_ptxas(apart)


def test_spilled_registers_are_found():
    crowded = compiled(crowded_kernel, torch.float32, "sm_90", block=16384, num_warps=1)
    assert crowded.local > 0, crowded
    crowded = compiled(crowded_kernel, torch.float32, "gfx942", block=32768, num_warps=1)
    assert crowded.local > 0 and crowded.spills > 0, crowded
    assert compiled(divided_kernel, torch.float32, "sm_90").local == 0


def test_lines_are_understood():
    """Of which no kernel here has an example."""
    assert resources.in_ptx("\tadd.ftz.f32 \t%r1, %r2, %r3;")
    assert resources.in_ptx("\t@%p1 div.approx.f32 \t%r1, %r2, %r3;")
    assert resources.in_ptx("\tfma.rn.f32 \t%r1, %r2, %r3, %r4;")
    assert not resources.in_ptx("\tmov.b32 \t%r4, 0f00000000;\n\tfma.rn.f32 \t%r1, %r2, %r3, %r4;")
    assert resources.in_ptx("\tfma.rn.f64 \t%rd1, %rd2, %rd3, 0d3FF0000000000000;")
    assert not resources.in_ptx("\tfma.rn.f64 \t%rd1, %rd2, %rd3, 0d8000000000000000;")
    assert not resources.in_ptx("\tdiv.rn.f32 \t%r1, %r2, %r3;\n\tdiv.s32 \t%r1, %r2, %r3;")
    assert resources.in_llir("  %1 = fadd contract float %2, %3, !dbg !1")
    assert resources.in_llir("  %1 = fdiv float %2, %3, !fpmath !1")
    assert resources.in_llir('attributes #0 = { "denormal-fp-math-f32"="preserve-sign" }')
    assert not resources.in_llir('attributes #0 = { "denormal-fp-math-f32"="ieee" }')
    vector = "  %1 = fmul <2 x float> %2, %3\n  %4 = extractelement <2 x float> %1, i64 0\n"
    assert resources.in_llir(f"{vector}  %5 = fadd float %4, %6")
    assert not resources.in_llir(vector)
    zeros = "<2 x float> zeroinitializer"
    call = "  %1 = tail call <2 x float> @llvm.fma.v2f32(<2 x float> %2, <2 x float> %3, "
    assert not resources.in_llir(f"{call}{zeros}), !dbg !1")
    assert resources.in_llir(f"{call}<2 x float> <float 0.000000e+00, float 1.000000e+00>)")
    product = "  %1 = fmul double %2, %3\n"
    assert not resources.in_llir(f"{product}  %4 = fadd double %1, 0.000000e+00, !dbg !1")
    assert resources.in_llir(f"{product}  %4 = fadd double %1, 1.000000e+00, !dbg !1")
    mode = "\t\t.amdhsa_float_denorm_mode_32"
    assert resources.in_amdgcn(f"{mode} 0", "") and not resources.in_amdgcn(f"{mode} 3", "")
    division = "  %1 = fdiv float %2, %3"
    assert resources.in_amdgcn("\tv_rcp_f32_e32 v1, v2", division)
    assert not resources.in_amdgcn("\tv_div_fixup_f32 v1, v2, v3, v4", division)


# --- the kernels ----------------------------------------------------------------------------------


def representatives(target, lengths):
    """Of every kernel and type of scores the variant for the longest lists, masked."""
    found = {}
    for dtype, several in lengths.items():
        for n in several:
            case = Case(dtype, n, masked=True, ties=AVERAGE)
            for launch in itertools.chain(*resources.launches_of(case).values()):
                v = resources.variant(launch, target)
                first = next(kind for _, kind in v.signature if kind.startswith("*"))
                found[v.module, v.name, first] = v
    return list(found.values())


# A length for each way that a list takes; fewer where only the back-end differs.
TO_COMPILE = {
    "sm_90": {
        torch.float32: resources.LENGTHS,
        torch.float64: (1000, 100_000),
        torch.bfloat16: (1000,),
        torch.int64: (33,),
    },
    "sm_80": {torch.float32: (33,)},
    "gfx942": {torch.float32: (33,)},
}


@pytest.mark.parametrize("target", TO_COMPILE)
def test_kernels_keep_within_bounds_and_round(target):
    """Local memory is traffic that no line asks for."""
    variants = representatives(target, TO_COMPILE[target])
    assert len(variants) >= (8 if target == "sm_90" else 6)
    bad = []
    for c in (resources.attempt((variant, target)) for variant in variants):
        if isinstance(c, str):
            bad.append(c)
            continue
        if (
            c.local > MOST_LOCAL
            or c.spills
            or c.registers > MOST_REGISTERS
            or c.shared > MOST_SHARED
        ):
            bad.append(str(c))
        bad += [f"{c}: {finding}" for finding in c.findings]
    assert not bad, "\n".join(bad)


# --- how often Triton compiles --------------------------------------------------------------------

OPERATIONS = tuple(resources.OPERATIONS)


def seen(operation, cases):
    """The variants of every kernel that the operation launches."""
    found = defaultdict(set)
    for case in cases:
        for launch in resources.launches_of(case, [operation])[operation]:
            variant = resources.variant(launch, "sm_90")
            found[variant.name].add(variant)
    return found


def differences(variants):
    """The arguments by whose values or types variants of one kernel differ."""
    facts = []
    for variant in variants:
        names = [p.name for p in variant.kernel.params]
        facts.append(dict.fromkeys(names, ()))
        for name, kind in variant.signature:
            facts[-1][name] += (kind,)
        for (place,), fact in (*variant.constants, *variant.attributes):
            facts[-1][names[place]] += (fact,)
    return {name for name in facts[0] if len({fact[name] for fact in facts}) > 1}


def assert_shared(found, most=1, rows=2):
    """Up to ``most`` variants, ``rows`` times as many where strides tell if rows are aligned."""
    assert found
    for name, variants in found.items():
        changing = differences(variants)
        by_rows = {argument for argument in changing if argument.endswith("_list")}
        assert changing == by_rows or most > 1, (name, changing)
        assert len(variants) <= most * (rows if by_rows else 1), (name, changing)


@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize(
    "lengths", [range(33, 65), range(513, 1025, 7), range(9000, 16385, 97)], ids=str
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_lists_of_similar_lengths_share_what_is_compiled(operation, lengths, layout):
    """Nothing but the next power of two of n is compiled in."""
    cases = [Case(torch.float32, n, layout=layout) for n in lengths]
    # Inputs of rows of n + 1 items are aligned or not apart from results of rows of n.
    assert_shared(seen(operation, cases), rows=2 if layout == "contiguous" else 4)


@pytest.mark.parametrize("n", [100, 5000])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_batches_and_lam_share_what_is_compiled(operation, n):
    lams = [Case(torch.float32, n, lam=lam) for lam in (0.3, 0.5, 1.0, 16.0, 1e-30, 1e30)]
    sizes = [Case(torch.float32, n, lists=lists) for lists in (2, 3, 16, 1000)]
    assert_shared(seen(operation, lams + sizes))
    # The loss of one list need not be added to others.
    assert_shared(seen(operation, [*sizes, Case(torch.float32, n, lists=1)]), most=2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_run_time_sizes_are_not_specialized(operation):
    """An argument that changes with the size of the call, other than a stride."""
    for n in (40, 1000, 100_000):
        base, *others = (
            resources.launches_of(case, [operation])[operation]
            for case in (
                Case(torch.float32, n),
                Case(torch.float32, n - 1),
                Case(torch.float32, n, lists=5),
                Case(torch.float32, n, lam=0.7),
            )
        )
        for one, two in (pair for other in others for pair in zip(base, other, strict=True)):
            values = two.values()
            changed = {
                name
                for name, value in one.values().items()
                if isinstance(value, int) and value != values[name] and not name.endswith("_list")
            }
            free = {p.name for p in one.kernel.params if p.is_constexpr or p.do_not_specialize}
            assert changed <= free, (one.kernel.fn.__name__, n)


# --- the report -----------------------------------------------------------------------------------


def test_the_report_lists_what_was_compiled():
    sound = compiled(divided_kernel, torch.float64, "sm_90")
    row = resources.table([sound, compiled(divided_kernel, torch.float64, "gfx942")]).splitlines()[
        -1
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["`test_triton_compiled.divided_kernel`", "fp64, BLOCK=128", "4"]
    assert cells[3:5] == [str(sound.registers), "0"]
    assert len(cells) == 9


def test_recording_ends_with_the_block():
    before = host.launch
    with resources.recorded() as launches:
        host.launch(divided_kernel, 3, 1, 2, BLOCK=4)
        assert host.launch is not before
    assert host.launch is before
    assert launches == [Launch(divided_kernel, (1, 2), {"BLOCK": 4})]
    assert launches[0].kernel is divided_kernel


def test_the_command_writes_a_report(tmp_path, monkeypatch):
    """Of one kernel, for one length; and what does not compile is a line of it, and a failure."""
    monkeypatch.setattr(resources, "cases", lambda: [Case(torch.float32, 33, masked=True)])
    out = tmp_path / "resources.md"
    arguments = ["--targets", "sm_90", "--only", "positive_ranks_kernel", "--jobs", "1"]
    assert resources.main([*arguments, "--out", str(out)]) == 0
    assert f"By Triton {triton.__version__}, for 1 variants" in out.read_text()
    assert "| `positives_list.positive_ranks_kernel` | fp32, " in out.read_text()
    assert resources._NOTHING in out.read_text()

    x = torch.empty(64, device="meta")
    broken = resources.variant(Launch(unequal_kernel, (x, x, x), {"BLOCK": 32}), "sm_90")
    monkeypatch.setattr(resources, "variants", lambda cases, target: [broken])
    assert resources.main([*arguments[:2], *arguments[4:], "--out", str(out)]) == 1
    assert "unequal_kernel, fp32, BLOCK=32: does not compile: " in out.read_text()
