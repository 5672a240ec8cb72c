"""The examples in docstrings and the README run and print what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import rankreg_ext

MODULES = sorted(
    name
    for _, name, is_package in pkgutil.iter_modules(rankreg_ext.__path__, "rankreg_ext.")
    if not is_package and not name.split(".")[-1].startswith("_C")
)
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", ["rankreg_ext", *MODULES])
def test_docstring_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_public_function_has_an_example():
    for name in rankreg_ext.__all__:
        item = getattr(rankreg_ext, name)
        if callable(item):
            assert ">>>" in item.__doc__, name


def test_readme_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
