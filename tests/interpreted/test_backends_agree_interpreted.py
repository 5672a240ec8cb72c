"""The tests of test_backends_agree.py on the kernels in Triton, interpreted.

Longer lists are in the files beside this one, where bounds are made small.
"""

from test_backends_agree import (
    pytest_generate_tests,
    test_blackbox_rank,
    test_positive_ranks,
    test_rank,
    test_rankreg_loss,
)

__all__ = [
    "pytest_generate_tests",
    "test_blackbox_rank",
    "test_positive_ranks",
    "test_rank",
    "test_rankreg_loss",
]

BACKENDS = ("interpreted",)
