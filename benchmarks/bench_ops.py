"""The cases of the suite under pytest-benchmark: ``make bench-pytest ARGS="-k rank_64x128"``.

For ``--benchmark-save`` and ``--benchmark-compare`` while a kernel is being worked on. Inputs
rotate and outputs are checked first, as in the harness; one thread.
"""

import itertools

import pytest
import torch

from . import cases, harness

MOST_ELEMENTS = 2**20


def _parameters():
    found = [case for case in cases.standard() if case.elements <= MOST_ELEMENTS]
    for case in found:
        for provider in harness.providers_of(case):
            yield pytest.param(
                case, provider.name, id=f"{case.name}/{provider.name}".replace("/", "_")
            )


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "provider"), _parameters())
def bench_op(benchmark, case, provider):
    (runner,) = harness.prepare(case, (provider,))
    rotation = itertools.cycle(runner.arguments)
    benchmark.group = case.name
    benchmark.extra_info.update(elements=case.elements, gate=runner.gate)
    benchmark(lambda: runner.provider.call(*next(rotation)))
