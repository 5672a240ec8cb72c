"""The CUDA kernels compile for GPUs, within bounds; nvcc is needed, a GPU is not."""

import pytest

from benchmarks import resources

needs_nvcc = pytest.mark.skipif(resources.nvcc() is None, reason="needs nvcc, though no GPU")

LOG = """
ptxas info    : 11 bytes gmem
ptxas info    : Compiling entry function '_ZN7rankreg3gpu4twinIfLi4EEEvPKT_' for 'sm_90'
ptxas info    : Function properties for _ZN7rankreg3gpu4twinIfLi4EEEvPKT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 3.1 ms
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


def test_a_log_of_ptxas_is_understood():
    plain, twin = resources.parse(LOG, "a.cu", 90)
    assert plain == resources.Kernel("a.cu", 90, "plain", 12, 0, 0, 0)
    assert twin == resources.Kernel("a.cu", 90, twin.name, 40, 16, 20, 1024)
    assert "twin<float, 4>" in twin.name
    text = resources.table([plain, twin])
    assert "| a.cu | `plain` | 12 | 0 | 0 | 0 |" in text.splitlines()


@pytest.mark.slow
@needs_nvcc
def test_kernels_compile_without_spills():
    """For sm_80 and sm_90; a kernel that spills waits for memory that no line of it asks for."""
    kernels = [k for k in resources.compile_all() if not k.name.startswith("cub::")]
    assert len(kernels) > 50
    assert {kernel.file for kernel in kernels} == {
        "rank.cu",
        "positive_ranks.cu",
        "rankreg_loss.cu",
        "hinge_violations.cu",
    }
    for kernel in kernels:
        assert kernel.spills == 0, kernel
        assert kernel.stack == 0, kernel
        assert kernel.shared <= 16 * 1024, kernel  # kMostStatic of device.cuh
