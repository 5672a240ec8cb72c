"""Builds the emulated CUDA back-end and loads it: ``torch.ops.rankreg_ext_emulated``.

The kernels of csrc/cuda, compiled by the C++ compiler with the emulator's header in the place of
CUDA's, and registered for CPU tensors by the very code that registers the CUDA kernels.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted((*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("tests/emulator/*.cpp")))
FLAGS = (
    "-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas"
    " -fno-fast-math -ffp-contract=off"
)

# With RANKREG_EMULATOR_SANITIZE = 1, for a process that has the sanitizers' libraries preloaded.
SANITIZED = os.environ.get("RANKREG_EMULATOR_SANITIZE") == "1"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"

# With RANKREG_EMULATOR_COVERAGE=1, for coverage.py.
COVERED = os.environ.get("RANKREG_EMULATOR_COVERAGE") == "1"


def build(folder: Path, flags: str = "", link_flags: str = "") -> Path:
    """Compile what changed, with ``flags`` besides ours; the library's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:  # test processes start together
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(folder, flags, link_flags)


def _build(folder: Path, flags: str, link_flags: str) -> Path:
    torch_root = Path(torch.__file__).parent
    library = folder / f"rankreg_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = (torch_root / "include", pybind11.get_include(), sysconfig.get_path("include"))
    headers = [part for folder in includes for part in ("-isystem", str(folder))]
    defines = ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'tests' / 'emulator'}"]
    compile_ = shlex.join(["c++", *shlex.split(f"{FLAGS} {flags}"), *defines, *headers])
    libraries = ["-Wl,--no-as-needed", f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    link = shlex.join(["c++", "-shared", *shlex.split(link_flags), *libraries])
    lines = [
        f"builddir = {folder}",
        "rule cxx",
        f"  command = {compile_} -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {link} -o $out $in",
    ]
    objects = []
    for source in SOURCES:
        objects.append(folder / f"{source.parent.name}-{source.name}.o")
        lines.append(f"build {objects[-1]}: cxx {source}")
    lines.append(f"build {library}: link {' '.join(map(str, objects))}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = shutil.which("ninja", path=sysconfig.get_path("scripts")) or "ninja"
    # A compiler with a sanitizer's library loaded into it is several times slower.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        [ninja, "-f", folder / "build.ninja"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the emulated back-end cannot be built:\n{done.stdout}{done.stderr}")
    return library


@cache
def load() -> ModuleType:
    """The module of the emulator, its ops being registered; built where that is needed."""
    from rankreg_ext import _ops

    tag = re.sub(r"\W", "_", f"{sys.implementation.cache_tag}-torch{torch.__version__}")
    flags, kind = "", ""
    if SANITIZED:
        flags, kind = SANITIZE, "_sanitized"
    elif COVERED:
        flags, kind = "--coverage -fprofile-update=single -O1", "_covered"
    path = build(ROOT / "build" / "emulator" / f"{tag}{kind}", flags, flags)
    # Kept alive by the module : Libraries that are collected take their ops with them.
    namespaces = [
        f"rankreg_ext_{ops}" for ops in ("emulated", "stream", "block_radix", "device_radix")
    ]
    libraries = [torch.library.Library(namespace, "DEF") for namespace in namespaces]
    for library in libraries:
        for schema in _ops._SCHEMAS:
            library.define(schema)
    spec = importlib.util.spec_from_file_location("rankreg_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.libraries = libraries
    return module
