"""The choice of a back-end, and the report of what can be chosen."""

import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import rankreg_ext
from rankreg_ext import _backend, _triton, use_backend

unusable = pytest.mark.skipif(_backend.usable("cuda") is None, reason="CUDA is usable here")


def python(code: str, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.fixture
def no_request(monkeypatch):
    """As if RANKREG_BACKEND were not set."""
    monkeypatch.setattr(_backend, "_default", "auto")


def test_blocks_nest_and_the_innermost_decides(no_request):
    assert _backend.requested() == "auto"
    with use_backend("reference"):
        assert _backend.requested() == "reference"
        with use_backend("auto"):
            assert _backend.requested() == "auto"
            with use_backend("reference"):
                assert _backend.requested() == "reference"
            assert _backend.requested() == "auto"
        assert _backend.requested() == "reference"
    assert _backend.requested() == "auto"
    assert _backend._open == ()


def test_block_that_raises_is_left_like_any_other(no_request):
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        1 / 0  # noqa: B018
    assert _backend.requested() == "auto"
    assert _backend._open == ()


def test_decorator_chooses_for_each_call(no_request):
    @use_backend("reference")
    def nested(depth):
        inner = nested(depth - 1) if depth else []
        return [_backend.requested(), *inner]

    assert nested(2) == ["reference"] * 3
    assert _backend.requested() == "auto"


def test_choice_holds_for_the_thread_that_made_it(no_request):
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def other():
        seen.append(_backend.requested())
        with use_backend("reference"):
            inside.set()
            leave.wait(10)
            seen.append(_backend.requested())

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    assert _backend.requested() == "auto"
    with use_backend("auto"):  # left before the other thread's, which was entered before it
        assert _backend.requested() == "auto"
    leave.set()
    thread.join()
    assert seen == ["auto", "reference"]
    assert _backend._open == ()


@pytest.mark.parametrize("name", ["gpu", "CPU", "", None])
def test_unknown_name_is_an_error_that_lists_the_names(name):
    message = (
        rf"^use_backend: name must be one of auto, cpu, cuda, triton, reference; got {name!r}$"
    )
    with pytest.raises(ValueError, match=message), use_backend(name):
        pass


@unusable
def test_unusable_backend_is_an_error_on_entry_that_says_why(no_request):
    reason = _backend.usable("cuda")
    with pytest.raises(RuntimeError) as error, use_backend("cuda"):
        pytest.fail("the block was entered")
    assert str(error.value) == f"use_backend: backend 'cuda' is not usable: {reason}"
    assert _backend.requested() == "auto"
    assert _backend._open == ()


def test_compiled_code_follows_the_choice(no_request):
    def name_as_number(x):
        return x + _backend.BACKENDS.index(_backend.requested())

    compiled = torch.compile(name_as_number, fullgraph=True, backend="eager")
    zero = torch.zeros(())
    assert compiled(zero) == 0
    with use_backend("reference"):
        assert compiled(zero) == _backend.BACKENDS.index("reference")
        with use_backend("auto"):
            assert compiled(zero) == 0
        assert compiled(zero) == _backend.BACKENDS.index("reference")
    assert compiled(zero) == 0


def test_environment_chooses():
    done = python(
        "from rankreg_ext import _backend, _triton, use_backend, show_config\n"
        "print(_backend.requested())\n"
        "with use_backend('auto'): print(_backend.requested())\n"
        "print(show_config())",
        RANKREG_BACKEND="reference",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["reference", "auto"]
    assert "  requested  reference (RANKREG_BACKEND)" in done.stdout


def test_invalid_environment_is_an_error_at_the_first_call_and_not_on_import():
    done = python(
        "import torch, rankreg_ext\n"
        "print(rankreg_ext.show_config())\n"
        "rankreg_ext.rank(torch.zeros(3))",
        RANKREG_BACKEND="quick",
    )
    assert "requested  invalid: RANKREG_BACKEND='quick', must be one of auto, cpu" in done.stdout
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ValueError: RANKREG_BACKEND must be one of auto, cpu, cuda, triton, reference; got 'quick'"
    )


@unusable
def test_environment_that_cannot_be_met_is_an_error_at_the_first_call():
    done = python("import torch, rankreg_ext; rankreg_ext.rank(torch.zeros(3))",
                  RANKREG_BACKEND="cuda")  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: rank: backend 'cuda' was requested")


def test_report_names_versions_and_every_backend():
    report = rankreg_ext.show_config()
    lines = report.splitlines()
    assert lines[0] == f"rankreg_ext {rankreg_ext.__version__}"
    assert f"torch      {torch.__version__}" in report
    assert f"{torch.get_num_threads()} threads" in report
    for backend in ("cpu", "cuda", "triton", "reference"):
        reason = _backend.usable(backend)
        state = "usable" if reason is None else f"off: {reason}"
        assert f"  {backend:<10} {state}" in lines
    with use_backend("reference"):
        assert "  requested  reference (use_backend)" in rankreg_ext.show_config().splitlines()


def test_report_tells_how_the_native_library_was_built():
    native = _backend.load_native()
    if native is None:
        pytest.skip("there is no native library here")
    facts = native.build_info()
    assert facts["version"] == rankreg_ext.__version__
    assert facts["cxx_standard"] == 201703
    assert facts["torch_target"] == "2.11"
    assert facts["flags"].endswith("-ffp-contract=off")
    assert facts["debug"] is not facts["optimized"]
    report = rankreg_ext.show_config()
    for name, fact in facts.items():
        assert f"    {name:<12} {fact}" in report.splitlines()
    assert f"    isa          {native.isa()}, of {', '.join(native.isas())}" in report.splitlines()


def test_library_that_cannot_be_loaded_is_told_as_such(monkeypatch):
    record = {"built": True, "reason": None}
    monkeypatch.setattr(_backend, "build_info", lambda: {"native": record})
    module, reason = _backend._import_library("_no_such_library", "native")
    assert module is None
    assert reason.startswith("built, but it cannot be loaded: No module named")


def test_source_tree_that_was_never_installed_is_told_as_such(monkeypatch):
    monkeypatch.setattr(_backend, "build_info", dict)
    module, reason = _backend._import_library("_C", "native")
    assert module is None
    assert "not installed" in reason
    assert "pip install --no-build-isolation -e ." in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_on_which_triton_cannot_run_is_told_as_such():
    pytest.importorskip("triton")
    from rankreg_ext import triton_kernels

    reason = triton_kernels.try_out("cuda")
    assert re.match(r"a kernel cannot be run: \w+: ", reason)
    assert "\n" not in reason


def test_a_device_is_tried_out_once_and_past_what_is_being_traced(monkeypatch):
    """torch.compile makes no real tensors in its own thread."""
    from rankreg_ext import triton_kernels

    seen = []

    def trial(device):
        seen.append((device, type(torch.zeros(())).__name__))

    monkeypatch.setitem(
        sys.modules, "rankreg_ext.triton_kernels.trial", SimpleNamespace(trial=trial)
    )
    with torch._subclasses.FakeTensorMode():
        assert type(torch.zeros(())).__name__ == "FakeTensor"
        assert triton_kernels.try_out("cuda") is None
    assert seen == [("cuda", "Tensor")]


def test_ops_fall_back_to_plain_torch_where_triton_cannot_be_used(monkeypatch):
    """Asked for by nobody: an explicit request raises instead."""
    calls = []
    kernel = _triton.kernel_or("rank", lambda *args: calls.append(args))
    monkeypatch.setitem(_backend._reasons, "triton", "there is no C compiler")
    args = (torch.zeros(3), True, 0, None)
    kernel(*args)
    assert len(calls) == 1 and calls[0] is not None
    with pytest.raises(RuntimeError, match="'triton' is not usable: there is no C compiler"):
        with use_backend("triton"):
            pass


def test_scores_are_found_among_the_arguments_of_every_op():
    x, grad = torch.zeros(3), torch.zeros(())
    positives = torch.zeros(3, dtype=torch.bool)
    for args in ((x, True, 0, None), (x, 1.0, None), (x, positives, 1.0), (grad, x, positives)):
        assert _triton._scores(args) is x
