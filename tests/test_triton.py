"""Runs the tests of tests/interpreted, each file in a process of its own.

Triton decides on import whether it compiles kernels or interprets them.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("numpy")

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def run(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{FOLDER / file}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "RANKREG_BACKEND"):
        environment.pop(name, None)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs():
    """Two at a time: these are few tests of long duration, and so the last ones to begin."""
    with ThreadPoolExecutor(2) as pool:
        yield {file: pool.submit(run, file) for file in FILES}


@pytest.mark.parametrize("file", FILES)
def test_interpreted(file, runs):
    done = runs[file].result()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout[-2000:]
    print(done.stdout.strip().splitlines()[-1])
