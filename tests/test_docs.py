"""The examples in docstrings and the README run and print what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import rankreg_ext.compat
from rankreg_ext import arrays, losses, metrics
from rankreg_ext.compat import scipy_stats

MODULES = sorted(
    name
    for package in (rankreg_ext, rankreg_ext.compat, metrics)
    for _, name, is_package in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    if not is_package and not name.split(".")[-1].startswith("_C")
)
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", ["rankreg_ext", "rankreg_ext.triton_kernels", *MODULES])
def test_docstring_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_public_function_has_an_example():
    for module in (rankreg_ext, arrays, losses, metrics, scipy_stats):
        for name in module.__all__:
            item = getattr(module, name)
            if callable(item):
                assert ">>>" in item.__doc__, name


def test_readme_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
