import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# The number of generated cases stands in each test; a deadline would only measure the machine.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fill uninitialised tensors, also those allocated inside native ops, with NaN or maxima.

    An element that a kernel forgets to write then fails the comparison with the oracle.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets the number of intra-op threads; restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
