"""What torch.compile sees of the ops in Triton: launches, and no opaque op. No GPU is needed.

Tensors of the CPU are traced; what they are traced to is not run. A driver that only names a target
lets torch find out which tensors a kernel writes.
"""

import builtins
import dis
import importlib
import importlib.util
import operator
import re

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import rankreg_ext
from rankreg_ext import _backend, _ops, blackbox_rank, positive_ranks, rank, rankreg_loss
from rankreg_ext.losses import hinge_violations

triton = pytest.importorskip("triton")

KERNEL = torch.ops.higher_order.triton_kernel_wrapper_functional


class Target:
    """A driver as far as compiling needs one."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


class WithoutLaunches(torch.fx.Interpreter):
    """Runs a graph, but leaves what kernels would have written as it is."""

    def call_function(self, target, args, kwargs):
        if target is KERNEL:
            return kwargs["kwargs"]
        return super().call_function(target, args, kwargs)


@pytest.fixture
def traced(monkeypatch):
    """Traces a function and its gradient; gives both graphs."""
    monkeypatch.setitem(_backend._reasons, "triton", None)
    monkeypatch.setitem(_backend.DEVICES, "triton", ("cpu",))
    monkeypatch.setattr(triton.runtime.driver, "_active", Target())
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(WithoutLaunches(graph).run)

    def trace(function, *args, dynamic=False):
        torch._dynamo.reset()
        graphs.clear()
        compiler = aot_autograd(fw_compiler=keep, bw_compiler=keep)
        torch.compile(function, fullgraph=True, dynamic=dynamic, backend=compiler)(*args).backward()
        return list(graphs)

    yield trace
    torch._dynamo.reset()


def kernels(graph):
    return [node for node in graph.graph.nodes if node.target is KERNEL]


def assert_writes_to_own_tensors(graph):
    """Kernels write to what was made in the graph, or by a kernel before out of that."""
    own = set()
    for node in graph.graph.nodes:
        if node.op == "call_function" and re.search("empty|zeros|full|clone", str(node.target)):
            own.add(node)
        elif node.target in (operator.getitem, torch.ops.aten.view.default):
            source, *rest = node.args
            if source.target is KERNEL:
                source = source.kwargs["kwargs"][rest[0]]
            if source in own:
                own.add(node)
        elif node.target is KERNEL:
            written = node.kwargs["tensors_to_clone"]
            assert written, node.format_node()
            for name in written:
                assert node.kwargs["kwargs"][name] in own, f"{name} of {node.format_node()}"


FUNCTIONS = {
    "rank": lambda x, positives, lam: rank(x, ties="average").sum() + x.sum(),
    "blackbox_rank": lambda x, positives, lam: (blackbox_rank(x, lam) ** 2).sum(),
    "positive_ranks": lambda x, positives, lam: (positive_ranks(x, positives, lam=lam) ** 2).sum(),
    "rankreg_loss": lambda x, positives, lam: rankreg_loss(x, positives, lam=lam),
    "hinge_violations": lambda x, positives, lam: (hinge_violations(x, positives, lam) ** 2).sum(),
}


# Lists that are counted, sorted by one program, and longer ones.
@pytest.mark.parametrize(
    ("n", "dynamic", "lam"),
    [
        (40, False, "float"),
        (40, True, "tensor"),
        (700, True, "float"),
        (3000, True, "float"),
    ],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_graphs_consist_of_launches(traced, name, n, dynamic, lam):
    """Fullgraph, either way, and only tensors that were made for it are written to."""
    x = torch.randn(3, n, requires_grad=True)
    lam = 2.0 if lam == "float" else torch.tensor(2.0)
    with rankreg_ext.use_backend("triton"):
        graphs = traced(FUNCTIONS[name], x, x > 1, lam, dynamic=dynamic)
    assert len(graphs) == 2
    for graph in graphs[: 1 if name == "rank" else 2]:  # ranks alone have no gradient
        assert kernels(graph), graph.code
        assert "rankreg_ext" not in graph.code
        assert_writes_to_own_tensors(graph)


def test_lists_of_other_lengths_use_the_code_that_there_is(traced):
    """Nothing in a graph of symbolic shapes is fixed to the length that it was traced with."""
    x = torch.randn(3, 700, requires_grad=True)
    with rankreg_ext.use_backend("triton"):
        for name, function in FUNCTIONS.items():
            forward, *_ = traced(function, x, x > 1, 2.0, dynamic=True)
            for node in kernels(forward):
                assert 700 not in node.kwargs["kwargs"].values(), name


def test_a_library_in_cuda_c_is_left_opaque(traced):
    """Without Triton being asked for, and with kernels for the device, the op stays one node."""
    x = torch.randn(3, 40, requires_grad=True)
    seen = traced(FUNCTIONS["rankreg_loss"], x, x > 1, 2.0)
    assert [bool(kernels(graph)) for graph in seen] == [False, False]
    assert "torch.ops.rankreg_ext.rankreg_loss" in seen[0].code


def test_triton_serves_devices_without_native_kernels(monkeypatch):
    """The same ops, under the key of the device; those of the CPU are never touched."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in _ops.NAMES:
        assert has(f"rankreg_ext::{name}", "XPU")
        assert has(f"rankreg_ext::{name}", "CUDA")
    monkeypatch.setitem(_backend._reasons, "triton", None)
    monkeypatch.setattr(_backend, "devices_without_native_kernels", lambda: ("xpu",))
    assert _backend.served_by_triton("xpu")
    assert not _backend.served_by_triton("cuda")
    assert not _backend.served_by_triton("cpu")
    monkeypatch.setitem(_backend._reasons, "triton", "no C compiler")
    assert not _backend.served_by_triton("xpu")


def kernels_of_package():
    """All kernels, by the name of their file and their own."""
    found = {}
    for module in ("rank", "positives_list", "positives_stream", "loss_sum", "hinge_violations"):
        module = importlib.import_module(f"rankreg_ext.triton_kernels.{module}")
        for name, value in vars(module).items():
            if name.endswith("_kernel") and isinstance(value, triton.runtime.jit.JITFunction):
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = value
    return found


@pytest.mark.parametrize("name", kernels_of_package())
def test_inductor_can_write_a_kernel_down(name, tmp_path):
    """It copies a kernel with all functions and constants that it refers to into a file."""
    from torch._inductor.codegen.wrapper import (
        user_defined_triton_kernel_transitive_closure_source_code as closure,
    )

    kernel = kernels_of_package()[name]
    path = tmp_path / "written.py"
    path.write_text(
        f"import triton\nimport triton.language as tl\n\n\n@triton.jit\n{closure(kernel)}"
    )
    spec = importlib.util.spec_from_file_location("written", path)
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    functions = [v for v in vars(written).values() if hasattr(v, "fn") and hasattr(v, "src")]
    assert kernel.fn.__name__ in vars(written)
    for function in functions:
        for step in dis.get_instructions(function.fn):
            if step.opname == "LOAD_GLOBAL":
                known = hasattr(written, step.argval) or hasattr(builtins, step.argval)
                assert known, f"{step.argval} of {function.fn.__name__}"


def test_there_are_kernels_to_write_down():
    files = {name.partition(".")[0] for name in kernels_of_package()}
    assert files == {"rank", "positives_list", "positives_stream", "loss_sum", "hinge_violations"}


def test_a_device_is_tried_out_while_compiling_if_it_was_not_before(traced, monkeypatch):
    """RANKREG_BACKEND=triton, and the first call is one that is compiled."""
    tried = []
    assert _backend._why_not._dynamo_marked_constant  # as the stand-in here is
    why_not = torch.compiler.assume_constant_result(lambda name: tried.append(name))
    monkeypatch.setattr(_backend, "_why_not", why_not)
    monkeypatch.delitem(_backend._reasons, "triton")
    monkeypatch.setattr(_backend, "_default", "triton")
    x = torch.randn(3, 40, requires_grad=True)
    forward, backward = traced(FUNCTIONS["rankreg_loss"], x, x > 1, 2.0)
    assert tried == ["triton"]
    assert kernels(forward) and kernels(backward)
