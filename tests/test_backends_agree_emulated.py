"""The tests of test_backends_agree.py on the CUDA kernels, emulated: see tests/emulator.

In a file of their own, because test processes share the work by files.
"""

from test_backends_agree import (
    pytest_generate_tests,
    test_blackbox_rank,
    test_long_lists_use_threads_and_stay_equal,
    test_many_lists_are_shared_out,
    test_many_positives,
    test_positive_ranks,
    test_rank,
    test_rankreg_loss,
    test_ranks_stay_exact_in_a_list_too_long_for_float32,
)

__all__ = [
    "pytest_generate_tests",
    "test_blackbox_rank",
    "test_long_lists_use_threads_and_stay_equal",
    "test_many_lists_are_shared_out",
    "test_many_positives",
    "test_positive_ranks",
    "test_rank",
    "test_rankreg_loss",
    "test_ranks_stay_exact_in_a_list_too_long_for_float32",
]

BACKENDS = ("emulated",)
