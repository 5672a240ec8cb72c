"""What the CUDA kernels take of a multiprocessor, by ptxas: no GPU is needed.

    python -m benchmarks.resources [--architectures 80,90] [--out report.md]

Registers and shared memory bound how many threads run side by side; spilled registers and stack
frames are memory traffic that no source line shows. Dynamic shared memory is chosen at launch and
not in this table.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90)
# As setup.py has them, as far as they matter to code.
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-fmad=false")


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel."""

    file: str
    architecture: int
    name: str  # with its template arguments
    registers: int
    stack: int  # bytes of a thread
    spills: int  # bytes stored and loaded, a thread
    shared: int  # static, bytes of a block


def nvcc() -> str | None:
    """The CUDA compiler on PATH."""
    return shutil.which("nvcc")


def compile_all(architectures: tuple[int, ...] = ARCHITECTURES, jobs: int = 2) -> list[Kernel]:
    """Every kernel of csrc/cuda, compiled for every architecture.

    Raises:
        RuntimeError: where nvcc fails; its output is the message.
    """
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    with TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        tasks = [
            pool.submit(_compile, source, architecture, Path(folder))
            for source in sources
            for architecture in architectures
        ]
        return [kernel for task in tasks for kernel in task.result()]


def _compile(source: Path, architecture: int, folder: Path) -> list[Kernel]:
    command = [
        nvcc(), *FLAGS, f"-arch=sm_{architecture}", "-cubin", "-Xptxas=-v", "-Werror=all-warnings",
        str(source), "-o", str(folder / f"{source.name}.{architecture}.cubin"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name}, sm_{architecture}:\n{done.stdout}{done.stderr}")
    return parse(done.stdout + done.stderr, source.name, architecture)


def parse(log: str, file: str, architecture: int) -> list[Kernel]:
    """The kernels that ptxas reports in ``log``, in order of their names."""
    kernels = []
    entry = re.compile(
        r"Compiling entry function '(?P<name>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    for match in entry.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        kernels.append(
            Kernel(
                file,
                architecture,
                demangled(match["name"]),
                int(match["registers"]),
                int(match["stack"]),
                int(match["stores"]) + int(match["loads"]),
                int(shared[1]) if shared else 0,
            )
        )
    return sorted(kernels, key=lambda kernel: kernel.name)


def demangled(name: str) -> str:
    """A readable name, as c++filt gives it, without namespaces and parameters."""
    if not shutil.which("c++filt"):
        return name
    text = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::", "", text)
    text = re.sub(r"^(void )?(.*?)\((?!anonymous).*$", r"\2", text)
    return re.sub(r"\b(rankreg|gpu)::", "", text)


def table(kernels: list[Kernel]) -> str:
    """A Markdown table, a kernel a row, the architectures side by side."""
    architectures = sorted({kernel.architecture for kernel in kernels})
    facts = {(k.file, k.name, k.architecture): k for k in kernels}
    head = "| file | kernel |" + "".join(f" registers, sm_{a} | spills |" for a in architectures)
    lines = [
        f"{head} stack | static shared |",
        "| --- | --- |" + " ---: |" * (2 * len(architectures) + 2),
    ]
    for file, name in dict.fromkeys((k.file, k.name) for k in kernels):
        found = [facts.get((file, name, a)) for a in architectures]
        numbers = [str(v) for k in found for v in ((k.registers, k.spills) if k else ("", ""))]
        some = [k for k in found if k]
        numbers += [str(max(k.stack for k in some)), str(max(k.shared for k in some))]
        lines.append(f"| {file} | `{name}` | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compile, and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__)
    parser.add_argument("--architectures", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if nvcc() is None:
        print("nvcc was not found", file=sys.stderr)
        return 1
    version = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"V([\d.]+)", version)
    kernels = compile_all(tuple(int(a) for a in options.architectures.split(",")))
    text = (
        "# Resources of the CUDA kernels\n\n"
        f"By ptxas of CUDA {release[1]}: spills (stores and loads) and stack in bytes a thread, "
        f"static shared memory in bytes a block.\n\n{table(kernels)}\n"
    )
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
