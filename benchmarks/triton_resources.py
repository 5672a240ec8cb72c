"""What the Triton kernels take of a GPU, and what became of their arithmetic: no GPU is needed.

    python -m benchmarks.triton_resources [--targets sm_80,sm_90,gfx942] [--out report.md]

Every host function is called on tensors without data, its launches are recorded instead of made,
and what Triton would compile for them is compiled, by the assembler that Triton brings along.
Registers and shared memory bound how many threads run side by side; spilled registers are memory
traffic that no source line shows. What `findings` looks for would let a rank or a gradient differ
from those of the other back-ends. The exit status is 1 if there is any finding.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import triton
from rankreg_ext.triton_kernels import host, tuning
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend
from triton.compiler.errors import CompilationError
from triton.runtime.jit import JITFunction, create_function_from_signature

from rankreg_ext import _ops, reference

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LENGTHS = (33, 1000, 100_000)


# --- launches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """One call of `host.launch`."""

    kernel: JITFunction
    args: tuple
    options: dict

    def values(self) -> dict:
        """The arguments of the kernel by name."""
        names = {name: v for name, v in self.options.items() if name in self.kernel.arg_names}
        bound = self.kernel.signature.bind(*self.args, **names)
        bound.apply_defaults()
        return dict(bound.arguments)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within the block launches are added to the list, and none is made."""
    launches: list[Launch] = []
    original = host.launch

    def record(kernel, programs, *args, **options):
        if not isinstance(kernel, JITFunction):
            raise RuntimeError("kernels are interpreted: unset TRITON_INTERPRET")
        launches.append(Launch(kernel, args, options))

    host.launch = record
    try:
        yield launches
    finally:
        host.launch = original


class _Pointer:
    """What Triton looks at in a tensor; memory that is allocated is aligned, a view need not be."""

    def __init__(self, x: Tensor):
        self.dtype = x.dtype
        self._offset = x.storage_offset() * x.element_size()
        self._bytes = x.untyped_storage().nbytes()

    def data_ptr(self) -> int:
        return self._offset

    def ptr_range(self) -> int:
        return self._bytes


@dataclass(frozen=True)
class Variant:
    """What Triton compiles once: a kernel with types, constants and what is known of arguments."""

    module: str
    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple
    attributes: tuple
    options: tuple

    @property
    def kernel(self) -> JITFunction:
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def home(self) -> str:
        """The name with that of the file: two files may have a kernel of one name."""
        return f"{self.module.rpartition('.')[2]}.{self.name}"

    @property
    def label(self) -> str:
        """The first pointer's type and the constants: what tells one row of the report apart."""
        first = next((t[1:] for _, t in self.signature if t.startswith("*")), "")
        parameters = [p.name for p in self.kernel.params]
        constants = {parameters[path[0]]: value for path, value in self.constants}
        text = ", ".join([first, *(f"{name}={value}" for name, value in constants.items())])
        loose = [
            name
            for (i,), hints in self.attributes
            for name, kind in self.signature[i : i + 1]
            if kind.startswith("*") and "tt.divisibility" not in str(hints)
        ]
        return f"{text}, any alignment: {' '.join(loose)}" if loose else text

    @property
    def warps(self) -> int:
        return dict(self.options).get("num_warps", 4)


@cache
def _binder(kernel: JITFunction, target: str) -> tuple:
    backend = make_backend(TARGETS[target])
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def variant(launch: Launch, target: str) -> Variant:
    """What Triton would compile for ``launch``, found out by Triton's own binder."""
    backend, binder = _binder(launch.kernel, target)
    args = [_Pointer(v) if isinstance(v, Tensor) else v for v in launch.args]
    # Fusion is what the formulas must stand: a default today, and inductor takes no other.
    options = {**launch.options, "enable_fp_fusion": True}
    bound, specialization, rest = binder(*args, **options)
    _, signature, constants, attributes = launch.kernel._pack_args(
        backend, options, bound, specialization, rest
    )
    return Variant(
        launch.kernel.fn.__module__,
        launch.kernel.fn.__name__,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple((path, tuple(map(tuple, hints))) for path, hints in attributes.items()),
        tuple((k, v) for k, v in options.items() if k not in signature),
    )


# --- calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One call of every host function that takes such scores."""

    dtype: torch.dtype
    n: int
    lists: int = 3
    masked: bool = False
    ties: int = 0
    descending: bool = True
    lam: float | None = 0.3  # None: a tensor
    layout: str = "contiguous"
    power: int = 2
    normalize: int = 1
    reduction: int = 2

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """``(lists, n)`` without data, in the layout of the case."""
        shape = (self.lists, self.n)
        if self.layout == "strided":
            return torch.empty((self.lists, 2 * self.n), dtype=dtype, device="meta")[:, ::2]
        if self.layout == "misaligned":
            return torch.empty((self.lists, self.n + 1), dtype=dtype, device="meta")[:, 1:]
        return torch.empty(shape, dtype=dtype, device="meta")


# Operations, and the modules of rankreg_ext.triton_kernels that their host functions are in.
OPERATIONS = {
    "rank": "rank",
    "blackbox_rank_backward": "rank",
    "positive_ranks": "positive_ranks",
    "positive_ranks_backward": "positive_ranks",
    "rankreg_loss": "rankreg_loss",
    "rankreg_loss_backward": "rankreg_loss",
    "hinge_violations": "hinge_violations",
    "hinge_violations_backward": "hinge_violations",
}


def host_function(operation: str) -> Callable:
    """What calls the kernels of ``operation``."""
    module = importlib.import_module(f"rankreg_ext.triton_kernels.{OPERATIONS[operation]}")
    return getattr(module, operation)


def launches_of(case: Case, names: Collection[str] | None = None) -> dict[str, list[Launch]]:
    """What each operation launches for ``case``; integers have ranks alone."""
    x = case.tensor(case.dtype)
    where = case.tensor(torch.bool) if case.masked else None
    ties = reference.TIES[case.ties]
    rank_dtype = reference.rank_dtype(case.dtype, case.n, ties)
    arguments: dict[str, tuple] = {"rank": (x, case.descending, case.ties, where)}
    if case.dtype.is_floating_point:
        lam_tensor = torch.empty((), device="meta") if case.lam is None else None
        lam = (1.0 if case.lam is None else case.lam, lam_tensor)
        positives = case.tensor(torch.bool)
        loss = (case.power, case.normalize, where)
        ranks = torch.empty((case.lists, case.n), dtype=rank_dtype, device="meta")
        plain = reference.rank_dtype(case.dtype, case.n)
        positive = ranks.to(plain)
        state = ranks.new_empty((case.lists, 1 + min(case.n, _ops.STATE_CAPACITY)), dtype=plain)
        some = _ops.REDUCTION[case.reduction] == "none"
        upstream = torch.empty(
            (case.lists,) if some else (),
            dtype=reference.compute_dtype(case.dtype),
            device="meta",
        ).expand(case.lists)
        arguments |= {
            "blackbox_rank_backward": (ranks, x, ranks, *lam, case.descending, case.ties, where),
            "positive_ranks": (x, positives, *lam, where),
            "positive_ranks_backward": (positive, x, positives, positive, *lam, where),
            "rankreg_loss": (x, positives, *lam, *loss, case.reduction),
            "rankreg_loss_backward": (upstream, x, positives, state, *lam, *loss),
            "hinge_violations": (x, positives, *lam, where),
            "hinge_violations_backward": (
                ranks.to(reference.compute_dtype(case.dtype)),
                x,
                positives,
                *lam,
                where,
            ),
        }
    found = {}
    for name in OPERATIONS if names is None else names:
        if name in arguments:
            with recorded() as launches:
                host_function(name)(*arguments[name])
            found[name] = launches
    return found


def bounds() -> list[int]:
    """The bounds on the length of a list in tuning.py: the largest blocks are there."""
    return sorted({v for k, v in vars(tuning).items() if "_MOST" in k and type(v) is int})


def cases() -> list[Case]:
    """Dtypes and lengths, masked; the rest, one at a time, for a length of every way."""
    found = [Case(dtype, n, masked=True) for n in LENGTHS for dtype in (*FLOATS, torch.int64)]
    found += [Case(dtype, n, masked=True) for n in bounds() for dtype in FLOATS[1:]]
    for n in LENGTHS:
        for dtype in (torch.float32, torch.float64):
            found += [Case(dtype, n, ties=ties) for ties in range(len(reference.TIES))]
        found += [
            Case(torch.float32, n, descending=False),
            Case(torch.float32, n, layout="strided", masked=True),
            Case(torch.float32, n, layout="misaligned"),
            Case(torch.float32, n, lam=None),
            Case(torch.float32, n, normalize=0),
            Case(torch.float32, n, lists=1, reduction=0),
            Case(torch.float32, n, lists=4096, reduction=1),
            Case(torch.uint8, n),
        ]
    return found


def variants(chosen: Iterable[Case], target: str) -> list[Variant]:
    """What is compiled for all ``chosen`` cases, each once."""
    launches = (v for case in chosen for found in launches_of(case).values() for v in found)
    return list(dict.fromkeys(variant(launch, target) for launch in launches))


# --- what was compiled ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """One variant, compiled for one target."""

    variant: Variant
    target: str
    registers: int  # of a thread
    local: int  # bytes of a thread in memory: spilled registers, and arrays
    spills: int  # vector registers, where the target counts them
    shared: int  # bytes of a block
    seconds: float
    findings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        name = f"{self.target}, {self.variant.home}, {self.variant.label}"
        numbers = f"{self.registers} registers, {self.local} bytes local, {self.spills} spills"
        return f"{name}: {numbers}, {self.shared} bytes shared"


def compile_variant(of: Variant, target: str) -> Compiled:
    """Compile, into Triton's cache; a variant that is found there takes no time."""
    started = time.perf_counter()
    asm, shared = assembled(of, target)
    seconds = time.perf_counter() - started
    measure = _of_cubin(asm["cubin"]) if "cubin" in asm else _of_amdgcn(asm["amdgcn"])
    return Compiled(of, target, *measure, shared, seconds, tuple(findings(asm)))


def assembled(of: Variant, target: str) -> tuple[dict, int]:
    """All that Triton makes of a variant, by stage, and the bytes of shared memory."""
    source = ASTSource(
        of.kernel,
        dict(of.signature),
        dict(of.constants),
        {path: [list(hint) for hint in hints] for path, hints in of.attributes},
    )
    made = triton.compile(source, target=TARGETS[target], options=dict(of.options))
    return made.asm, made.metadata.shared


def _of_cubin(cubin: bytes) -> tuple[int, int, int]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)}
    # A spilled register lives on the stack: there is no count of its own.
    return facts["REG"], facts["STACK"] + facts["LOCAL"], 0


def _of_amdgcn(text: str) -> tuple[int, int, int]:
    facts = {k: int(v) for k, v in re.findall(r"^\s*\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    # Scalar registers are spilled into lanes of vector registers, which takes no memory.
    return facts["vgpr_count"], facts["private_segment_fixed_size"], facts["vgpr_spill_count"]


# --- arithmetic -----------------------------------------------------------------------------------
#
# A product must not be contracted with a sum, a division must round correctly, and subnormal
# numbers must not be flushed. Triton lets LLVM contract, which it does where a sum reads a product,
# and then ptxas. So
# - in what LLVM is given no sum may read a product, but for an fma with an addend of zero: that is
#   a rounded product, and nothing contracts it. (The sum of a product and zero comes to the same.)
# - in what ptxas is given every fma has an addend of zero, which shows what LLVM did, and
# - where products and sums remain, ptxas has to give the same code when contraction is forbidden.


def findings(asm: dict[str, str]) -> list[str]:
    """What would let a result differ from that of another back-end, in words; empty if nothing."""
    found = in_llir(asm["llir"])
    if "ptx" in asm:
        found += in_ptx(asm["ptx"])
        if is_contracted_by_ptxas(asm["ptx"]):
            found.append("ptxas contracts a product and a sum")
    if "amdgcn" in asm:
        found += in_amdgcn(asm["amdgcn"], asm["llir"])
    return found


_ASSIGNED = re.compile(r"^\s*(%[\w.\"]+) = (?:tail |musttail )?(\w+)\b(.*?)(?:, !\w.*)?$")
# A product in one of these is the product still.
_CARRIERS = (
    "fneg", "extractelement", "insertelement", "shufflevector", "freeze", "extractvalue",
    "insertvalue", "bitcast",
)  # fmt: skip
_APPROXIMATE = re.compile(r"@llvm\.(amdgcn\.(rcp|rsq|sqrt|fdiv|log|exp)|nvvm\.\w+\.(approx|full))")
_RELAXED = re.compile(r"[\w ]*\b(?:fast|contract|reassoc|arcp|afn|nsz|nnan|ninf)\b")


def in_llir(text: str) -> list[str]:
    """Sums that read products, and operations that permit more than rounding."""
    found = []
    products: set[str] = set()
    for match in filter(None, map(_ASSIGNED.match, text.splitlines())):
        value, operation, rest = match.groups()
        line = match[0].strip()
        reads = products.intersection(re.findall(r"%[\w.]+", rest))
        if operation == "fmul" or (operation in _CARRIERS and reads):
            products.add(value)
        if operation in ("fadd", "fsub") and reads and not _is_zero(_last_argument(f"({rest})")):
            found.append(f"a product that a sum reads: {line}")
        if operation == "call" and re.search(r"@llvm\.(fma|fmuladd)\.", rest):
            if not _is_zero(_last_argument(rest)):
                found.append(f"fma with an addend: {line}")
        if operation in ("fadd", "fsub", "fmul", "fdiv", "frem", "call") and _RELAXED.match(rest):
            found.append(f"relaxed arithmetic: {line}")
        if (operation == "fdiv" and "!fpmath" in line) or _APPROXIMATE.search(rest):
            found.append(f"an approximation: {line}")
    if re.search(r'"denormal-fp-math(?:-f32)?"="(?!ieee)', text):
        found.append("subnormal numbers are flushed, by an attribute of the function")
    return found


def _sections(elf: bytes, prefix: bytes) -> Iterator[bytes]:
    """The contents of the sections of a 64-bit ELF file whose names start with ``prefix``."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_at = struct.unpack_from("<3H", elf, 58)
    headers = [struct.unpack_from("<2I4Q", elf, table + i * size) for i in range(count)]
    names = headers[names_at][4]
    for name, _, _, _, offset, length in headers:
        if elf.startswith(prefix, names + name):
            yield elf[offset : offset + length]


def _last_argument(rest: str) -> str:
    """The last argument of a call, with its type."""
    inner = rest[rest.index("(") + 1 : rest.rindex(")")]
    depth, start = 0, 0
    for i, letter in enumerate(inner):
        depth += letter in "(<[{"
        depth -= letter in ")>]}"
        if letter == "," and depth == 0:
            start = i + 1
    return inner[start:].strip()


def _is_zero(argument: str) -> bool:
    literals = re.findall(r"[-+]?\d+\.\d+e[-+]\d+|0x[0-9A-Fa-f]+", argument)
    if "%" in argument:
        return False
    if "zeroinitializer" in argument:
        return True
    return bool(literals) and all(re.fullmatch(r"[-+]?0\.0+e\+00", v) for v in literals)


def in_ptx(text: str) -> list[str]:
    """Divisions, flushing, and fused operations with an addend, in what ptxas is given."""
    found = []
    literals = {}
    for line in text.splitlines():
        code = " ".join(line.split("//")[0].split()).rstrip(";")
        code = re.sub(r"^@!?%p\d+ ", "", code)
        operation, _, rest = code.partition(" ")
        operands = [literals.get(v.strip(), v.strip()) for v in rest.split(",")]
        kinds = operation.split(".")
        if kinds[0] == "mov" and re.match(r"0[fd]", operands[-1]):
            literals[operands[0]] = operands[-1]
        if "ftz" in kinds:
            found.append(f"subnormal numbers are flushed: {code}")
        if "approx" in kinds or (kinds[0] == "div" and kinds[-1] in _REAL and "rn" not in kinds):
            found.append(f"an approximation: {code}")
        if kinds[0] in ("fma", "mad") and kinds[-1] in _REAL:
            if not re.fullmatch(r"0[fd][08]0+", operands[-1]):
                found.append(f"fma with an addend: {code}")
    return found


_REAL = ("f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64")


def is_contracted_by_ptxas(ptx: str) -> bool:
    """Whether permission to contract changes the code that ptxas makes."""
    kinds = {m[1] for m in re.finditer(r"\s(add|sub|mul)\.(?:b?f16(?:x2)?|f32|f64)\s", ptx)}
    if "mul" not in kinds or len(kinds) < 2:
        return False
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    ptxas = get_ptxas(int(re.search(r"\d+", architecture)[0])).path
    codes = []
    with TemporaryDirectory() as folder:
        source, made = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        for permitted in ("true", "false"):
            command = [
                ptxas, f"--gpu-name={architecture}", f"--fmad={permitted}",
                str(source), "-o", str(made),
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            codes.append(b"".join(_sections(made.read_bytes(), b".text")))
    return codes[0] != codes[1]


def in_amdgcn(text: str, llir: str) -> list[str]:
    """Flushing, and divisions without the step that rounds them.

    Reciprocals by themselves say nothing: a division of integers has them, too.
    """
    found = [
        f"subnormal numbers are flushed: {mode}"
        for mode in re.findall(r"\.amdhsa_float_denorm_mode_\w+ [0-2]\b", text)
    ]
    for kind, bits in (("float", "f32"), ("double", "f64")):
        divisions = len(re.findall(rf" = fdiv (?:<\d+ x )?{kind}\b", llir))
        rounded = len(re.findall(rf"^\s*v_div_fixup_{bits}\w*\s", text, re.MULTILINE))
        if divisions > rounded:
            found.append(f"an approximation: {divisions} divisions, {rounded} v_div_fixup_{bits}")
    return found


# --- report ---------------------------------------------------------------------------------------


def table(compiled: list[Compiled]) -> str:
    """A Markdown table, a variant a row, the targets side by side."""
    targets = list(dict.fromkeys(c.target for c in compiled))
    rows: dict[tuple, dict[str, Compiled]] = {}
    for c in compiled:
        row = rows.setdefault((c.variant.home, c.variant.label, c.variant.warps), {})
        # Variants that no name tells apart share a row: the one that takes more stands for them.
        if c.target not in row or row[c.target].registers < c.registers:
            row[c.target] = c
    head = "".join(f" registers, {t} | local |" for t in targets)
    lines = [
        f"| kernel | variant | warps |{head} shared | compiled, s |",
        "| --- | --- | ---: |" + " ---: |" * (2 * len(targets) + 2),
    ]
    for (name, label, warps), row in sorted(rows.items()):
        some = list(row.values())
        numbers = [str(warps)]
        for t in targets:
            numbers += [str(row[t].registers), str(row[t].local)] if t in row else ["", ""]
        numbers.append(str(max(c.shared for c in some)))
        numbers.append(f"{max(c.seconds for c in some):.1f}")
        lines.append(f"| `{name}` | {label} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def attempt(task: tuple[Variant, str]) -> Compiled | str:
    """A variant compiled for a target, or words why it was not."""
    try:
        return compile_variant(*task)
    except CompilationError as error:
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        of, target = task
        last = str(cause).strip().splitlines()[-1]
        return f"{target}, {of.home}, {of.label}: does not compile: {last}"


def compile_all(tasks: list[tuple[Variant, str]], jobs: int) -> Iterator[Compiled | str]:
    """All ``tasks``, in order, in processes of their own."""
    if jobs == 1:
        yield from map(attempt, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(attempt, tasks)


def main(arguments: list[str] | None = None) -> int:
    """Compile, and print or write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_resources")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    targets = options.targets.split(",")
    chosen = cases()
    tasks = [
        (v, target)
        for target in targets
        for v in variants(chosen, target)
        if options.only in v.name
    ]
    compiled = []
    # A cache of its own: a variant found in an old one would seem to be compiled in no time.
    with TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for c in compile_all(tasks, options.jobs):
            compiled.append(c)
            if sys.stderr.isatty():
                print(f"\r{len(compiled)} of {len(tasks)}", end="", file=sys.stderr)
    made = [c for c in compiled if isinstance(c, Compiled)]
    complaints = [f"- {c}" for c in compiled if isinstance(c, str)]
    complaints += [f"- {c}: {finding}" for c in made for finding in c.findings]
    text = (
        "# Resources of the Triton kernels\n\n"
        f"By Triton {triton.__version__}, for {len(tasks)} variants: registers of a thread, bytes "
        "of a thread in local memory (spilled registers and arrays), bytes of a block in shared "
        f"memory, and the longest compilation on one core.\n\n{table(made)}\n\n"
        "## Arithmetic\n\n" + ("\n".join(complaints) or _NOTHING) + "\n"
    )
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    return 1 if complaints else 0


_NOTHING = (
    "In all of them: no sum reads a product but an fma with an addend of zero, and ptxas contracts "
    "nothing either; no approximate division; no flushing of subnormal numbers."
)


if __name__ == "__main__":
    sys.exit(main())
