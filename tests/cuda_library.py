"""The CUDA library built against one torch, loaded into another that has CUDA. No GPU is needed.

    python tests/cuda_library.py PYTHON...

Builds a copy of the project against the torch of the interpreter that runs this script (which may
be a CPU build), and loads it into that of each PYTHON: one binary serves all. There, every op must
have a kernel under the CUDA key, and fakes of CUDA tensors must promise what the kernels make.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CHECK = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import rankreg_ext
from rankreg_ext import _backend, _ops

print(rankreg_ext.show_config())
assert torch.version.cuda, "this torch has no CUDA"
library, reason = _backend._load_cuda()
assert library is not None, reason
ops, has = torch.ops.rankreg_ext, torch._C._dispatch_has_kernel_for_dispatch_key
names = [schema.split("(")[0] for schema in _ops._SCHEMAS]
for name in names:
    for key in ("CUDA", "CPU", "CompositeExplicitAutograd"):
        assert has(f"rankreg_ext::{name}", key), (name, key)

with FakeTensorMode():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.empty(2, 300, dtype=dtype, device="cuda")
        positives = torch.empty(2, 300, dtype=torch.bool, device="cuda")
        ranks = ops.rank(x, True, 0, None)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert ranks.device.type == "cuda" and ranks.dtype == wide and ranks.shape == x.shape
        grad = torch.empty_like(ranks)
        back = ops.blackbox_rank_backward(grad, x, ranks, 1.0, None, True, 0, None)
        assert back.device.type == "cuda" and back.dtype == dtype and back.shape == x.shape
        loss, state = ops.rankreg_loss(x, positives, 1.0, None, 2, 1, None, 2)
        assert loss.shape == () and loss.dtype == wide and state.device.type == "cuda"
        assert state.shape == (2, 1 + _ops.STATE_CAPACITY) and state.dtype == wide
print("loaded:", torch.__version__, "with", len(names), "ops on CUDA")
"""


def main(pythons: list[str]) -> int:
    """Build, load, check."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        copy.mkdir()
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(ROOT / name, copy / name)
        for name in ("csrc", "rankreg_ext", "triton_kernels"):
            ignored = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        settings = {"RANKREG_CUDA": "1", "RANKREG_NATIVE": "1", "RANKREG_WERROR": "1"}
        build = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(build, cwd=copy, env={**os.environ, **settings}, check=True)
        # Away from the sources, and from an installed rankreg_ext.
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        checks = [[python, "-c", CHECK] for python in pythons]
        done = [subprocess.run(check, cwd=folder, env=environment) for check in checks]
        return max(check.returncode for check in done)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
