"""Which lines and branches of the CUDA kernels the emulated tests reach, by gcov.

    python tests/emulator/coverage.py FOLDER [OUT.md]

FOLDER is where a build with RANKREG_EMULATOR_COVERAGE=1 left its objects, once tests have run. A
line counts as reached if any instantiation of its template reached it; branches are counted for
every instantiation by itself, of which many serve types that take the same way. Branches that only
an exception takes are left out.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main(folder: Path, out: Path | None) -> int:
    """Print or write the table."""
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    branches: dict[str, dict[tuple[str, int, int], int]] = defaultdict(lambda: defaultdict(int))
    for data in sorted(folder.resolve().glob("*.gcda")):
        with tempfile.TemporaryDirectory() as scratch:
            command = ["gcov", "--json-format", "--branch-probabilities", str(data)]
            subprocess.run(command, cwd=scratch, check=True, capture_output=True)
            for report in Path(scratch).glob("*.json.gz"):
                for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                    path = (ROOT / file["file"]).resolve()
                    if path.parent != ROOT / "csrc" / "cuda" or path.suffix not in (".cuh", ".cu"):
                        continue
                    for line in file["lines"]:
                        lines[path.name][line["line_number"]] += line["count"]
                        real = [b for b in line["branches"] if not b["throw"]]
                        for number, branch in enumerate(real):
                            key = (line.get("function_name", ""), line["line_number"], number)
                            branches[path.name][key] += branch["count"]
    if not lines:
        print(f"no coverage data of csrc/cuda in {folder}", file=sys.stderr)
        return 1
    rows = [
        "| file | lines | reached | branches, all instantiations | reached | lines never reached |"
    ]
    rows.append("| --- | ---: | ---: | ---: | ---: | --- |")
    for name in sorted(lines):
        missed = [str(number) for number, count in sorted(lines[name].items()) if not count]
        some, taken = len(branches[name]), sum(c > 0 for c in branches[name].values())
        reached = len(lines[name]) - len(missed)
        shares = [
            f"{part / max(all_, 1):.1%}"
            for part, all_ in ((reached, len(lines[name])), (taken, some))
        ]
        rows.append(
            f"| {name} | {len(lines[name])} | {shares[0]} | {some} | {shares[1]} "
            f"| {' '.join(missed)} |"
        )
    text = "# Coverage of the CUDA kernels by the emulated tests\n\n" + "\n".join(rows) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
