"""The emulator that runs the CUDA kernels here notices what it is there to notice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulator.build import SANITIZED, load

HERE = Path(__file__).parent
SEEDS = range(8)


@pytest.fixture
def planted():
    module = load()
    yield lambda defect, seed: (module.set_seed(seed), module.planted(defect))[1]
    module.set_seed(0)


def expected() -> list[int]:
    """What planted.cpp computes: sums within each warp, read from the other warp."""
    values = torch.tensor([i * i % 7 for i in range(64)])
    return values.view(2, 32).cumsum(1).flip(0).flatten().tolist()


def test_a_correct_kernel_is_right_in_every_order(planted):
    for seed in SEEDS:
        assert planted("nothing", seed) == expected()


@pytest.mark.parametrize("defect", ["missing_barrier", "missing_warp_barrier", "uninitialised"])
def test_a_missing_barrier_or_write_shows_as_a_wrong_result(planted, defect):
    assert all(planted(defect, seed) != expected() for seed in SEEDS)


def test_the_order_of_threads_depends_on_the_seed_alone(planted):
    runs = [[planted("missing_barrier", seed) for seed in SEEDS] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs[0]}) > len(SEEDS) // 2


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("divergent_barrier", r"32 threads wait at __syncthreads .* 32 threads have returned"),
        ("early_return", r"1 threads have returned \(thread 40 first\)"),
        ("greedy", r"a block asks for too much shared memory"),
        ("divergent_shuffle", r"lanes of a warp call different functions: .*__shfl_sync"),
    ],
)
def test_what_hangs_or_fails_a_gpu_is_an_error_that_says_why(planted, defect, message):
    for seed in SEEDS:
        with pytest.raises(RuntimeError, match=message):
            planted(defect, seed)
    assert planted("nothing", 1) == expected()  # and leaves the emulator in order


# Ended by AddressSanitizer, so in a process of its own.
PLANT = """
import sys
from emulator.build import load
print(load().planted(sys.argv[1])[0])
"""


@pytest.mark.skipif(not SANITIZED, reason="needs AddressSanitizer: make sanitize-cuda")
@pytest.mark.parametrize("defect", ["overrun", "static_overrun", "nothing"])
def test_shared_memory_ends_where_it_ends(defect):
    done = subprocess.run(
        [sys.executable, "-c", PLANT, defect], cwd=HERE, capture_output=True, text=True
    )
    if defect == "nothing":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert "heap-buffer-overflow" in done.stderr, done.stderr
        assert "planted.cpp" in done.stderr
