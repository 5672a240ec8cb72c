"""Two commits side by side: is the second faster, and by how much more than the noise?

The measuring code is that of this checkout, the package that of each commit, built in a folder of
its own. A process for each commit waits for orders, and samples alternate between them, so that
what disturbs the machine disturbs both; several pairs of processes even out luck with addresses.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import Case

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".benchmarks" / "compare"
NEEDED = ("csrc", "rankreg_ext", "triton_kernels", "setup.py", "pyproject.toml")
NEEDED += ("README.md", "LICENSE", "MANIFEST.in")
SAMPLE_SECONDS = 2e-3


# ------------------------------------------------------------------------------------------ trees


def resolve(name: str) -> str:
    """The full hash of a commit.

    Raises:
        ValueError: if there is no such commit.
    """
    command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"compare: {name!r} is not a commit")
    return done.stdout.strip()


def tree_of(name: str) -> Path:
    """A folder that holds the built package of a commit; made once, and kept."""
    if name == ".":
        return ROOT
    commit = resolve(name)
    folder = CACHE / commit[:16]
    stamp = folder / "built"
    if not stamp.exists():
        print(f"building {name} ({commit[:12]})", flush=True)
        archive = subprocess.run(
            ["git", "archive", commit, *NEEDED], cwd=ROOT, check=True, capture_output=True
        ).stdout
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        done = subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=folder,
            env={**os.environ, "RANKREG_NATIVE": "1", "RANKREG_CUDA": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            raise ValueError(f"compare: {name} cannot be built:\n{done.stdout[-2000:]}")
        stamp.touch()
    return folder


def stage(label: str, tree: Path) -> Path:
    """A folder to run in: links to the package of ``tree`` and to the suite of this checkout."""
    folder = CACHE / f"stage-{os.getpid()}-{label}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in (
        ("rankreg_ext", tree / "rankreg_ext"),
        ("benchmarks", ROOT / "benchmarks"),
    ):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return folder


# ---------------------------------------------------------------------------------------- workers


class Worker:
    """The process of one commit, seen from outside."""

    def __init__(self, folder: Path, tree: Path, isa: str, threads: int):
        from . import machine

        variables = machine.environment_of(isa, threads)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare", isa, str(threads)], cwd=folder,
            env={**os.environ, **variables, "OMP_WAIT_POLICY": "passive"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        hello = self.ask()
        self.isa = hello["isa"]
        if Path(hello["package"]) != (tree / "rankreg_ext").resolve():
            raise RuntimeError(f"measured {hello['package']} instead of {tree}")

    def ask(self, **order: Any) -> dict[str, Any]:
        if order:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended, status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(isa: str, threads: int) -> None:
    """The same from inside: prepare a case, or take one sample, for every line of input."""
    import rankreg_ext

    from . import harness, machine
    from .providers import OURS

    machine.pin(threads)
    machine.use_isa(machine.isas()[-1] if isa == "best" else isa)
    answers = sys.stdout

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    answer(package=str(Path(rankreg_ext.__file__).resolve().parent), isa=machine.isa())
    runner = None
    for line in sys.stdin:
        order = json.loads(line)
        if "case" in order:
            runner = None  # frees the inputs of the last one
            found = harness.prepare(Case(**order["case"]), (OURS,), gate=order["gate"])
            if found:
                runner = found[0]
                runner.calibrate(1.0, SAMPLE_SECONDS)
            answer(ready=bool(found))
        else:
            answer(seconds=runner.sample())


# ----------------------------------------------------------------------------------------- ratios


@dataclasses.dataclass(frozen=True)
class Ratio:
    """B over A: the median of paired samples and their 10th and 90th percentile."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> Ratio:
        from .harness import quantiles

        return cls(*quantiles([y / x for x, y in zip(a, b, strict=True)]))

    def verdict(self, threshold: float) -> str:
        """A change counts if it exceeds the threshold and nine pairs in ten agree on its sign."""
        if self.median > threshold and self.low > 1:
            return "slower"
        if self.median < 1 / threshold and self.high < 1:
            return "faster"
        return "same"


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def compare(options: Any, cases: Sequence[Case]) -> int:
    """Print a Markdown table of ratios; 1 if a case became slower."""
    from . import machine

    if options.isa not in ("best", *machine.isas()):
        raise ValueError(f"--isa: {options.isa!r} is not usable here; there are {machine.isas()}")
    names = (options.a, options.b)
    trees = [tree_of(name) for name in names]
    folders = [stage(label, tree) for label, tree in zip("ab", trees, strict=True)]
    times: dict[Case, tuple[list[float], list[float]]] = {case: ([], []) for case in cases}
    began, steps, total = time.monotonic(), 0, options.processes * len(cases)
    isa = ""
    try:
        for pair in range(options.processes):
            workers = [
                Worker(folder, tree, options.isa, options.threads)
                for folder, tree in zip(folders, trees, strict=True)
            ]
            isa = " / ".join(dict.fromkeys(worker.isa for worker in workers))
            for case in cases:
                order = {"case": dataclasses.asdict(case), "gate": pair == 0}
                if all([worker.ask(**order)["ready"] for worker in workers]):
                    for i in range(options.rounds):
                        for which in (0, 1) if (i + pair) % 2 == 0 else (1, 0):
                            times[case][which].append(workers[which].ask(sample=1)["seconds"])
                steps += 1
                left = (time.monotonic() - began) / steps * (total - steps)
                print(f"[{steps}/{total}, {left:.0f} s left] {case.name}", file=sys.stderr)
            for worker in workers:
                worker.close()
    finally:
        for folder in folders:
            for link in folder.iterdir():
                link.unlink()
            folder.rmdir()
    return print_ratios(names, isa, options, times)


def print_ratios(names: Sequence[str], isa: str, options: Any, times: dict) -> int:
    """The table, the summary and the exit status."""
    from .harness import quantiles
    from .report import number, table

    lines, medians, slower = [], [], 0
    for case, (a, b) in times.items():
        if not a:
            continue
        ratio = Ratio.of(a, b)
        verdict = ratio.verdict(options.threshold)
        medians.append(ratio.median)
        slower += verdict == "slower"
        micro = [number(quantiles(samples)[1] * 1e6) for samples in (a, b)]
        spread = f"{ratio.low:.3f} - {ratio.high:.3f}"
        verdict = "" if verdict == "same" else verdict
        lines.append([f"`{case.name}`", *micro, f"{ratio.median:.3f}", spread, verdict])
    if not lines:
        raise ValueError("compare: neither commit knows any of these cases")
    a, b = names
    print(f"A = {a}, B = {b}; {isa}, {options.threads} thread(s); B / A, below 1 is faster\n")
    print(table(["case", "A, us", "B, us", "B / A", "p10 - p90", ""], lines))
    print(f"\ngeometric mean {geometric_mean(medians):.3f}; {slower} slower of {len(lines)}")
    return 1 if slower else 0


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
