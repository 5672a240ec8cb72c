"""Build of the native libraries of rankreg_ext; names, versions and packages are in pyproject.toml.

``rankreg_ext._C`` (C++) is built wherever a compiler, torch, pybind11 and ninja are found,
``rankreg_ext._C_cuda`` where nvcc and CUDA sources are found as well. What happened, and why, is
written to ``rankreg_ext/_build_info.json``, from which ``rankreg_ext.show_config()`` reports. If
the native library cannot be built, the installation goes on in pure Python.

Environment variables:
    RANKREG_NATIVE        auto (default) | 0: pure Python | 1: fail if _C cannot be built
    RANKREG_CUDA          auto (default) | 0: no CUDA | 1: fail if _C_cuda cannot be built
    RANKREG_WERROR        1: -Wall -Wextra -Werror, for development
    DEBUG                 1: no optimisation, debug symbols, assertions
    MAX_JOBS              number of parallel compilations (default: ninja's choice)
    CXX CXXFLAGS LDFLAGS  the compiler, and flags added to ours
    CUDA_HOME             the CUDA toolkit, if not the one of the nvcc on PATH
    TORCH_CUDA_ARCH_LIST  compute capabilities, such as "8.0;9.0+PTX"
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"rankreg_ext: setuptools >= 77 is needed to build, this is {setuptools.__version__}: "
        "pip install --upgrade setuptools"
    )

ROOT = Path(__file__).resolve().parent
PACKAGE = "rankreg_ext"
REMEDY = (
    "Install what the build needs (pip install torch pybind11 ninja setuptools wheel, and a C++17 "
    "compiler), then: pip install --no-build-isolation ."
)
# One binary serves this torch and every newer one: the stable ABI hides what came later.
TORCH_TARGET = (2, 11)
DEFAULT_CUDA_ARCHS = ("75", "80", "86", "89", "90", "100", "120")


class CannotBuild(Exception):
    """A native library cannot be built here; the message is the reason that users get to read."""


# ------------------------------------------------------------------------------------ settings


def choice(name: str, allowed: tuple[str, ...]) -> str:
    """Value of an environment variable, which must be one of ``allowed``; the first is default."""
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise SystemExit(f"rankreg_ext: {name} must be one of {', '.join(allowed)}; got {value!r}")
    return value


NATIVE = choice("RANKREG_NATIVE", ("auto", "0", "1"))
CUDA = choice("RANKREG_CUDA", ("auto", "0", "1"))
WERROR = choice("RANKREG_WERROR", ("0", "1")) == "1"
DEBUG = choice("DEBUG", ("0", "1")) == "1"
MAX_JOBS = os.environ.get("MAX_JOBS", "")
if MAX_JOBS and not (MAX_JOBS.isdecimal() and int(MAX_JOBS) > 0):
    raise SystemExit(f"rankreg_ext: MAX_JOBS must be a positive integer; got {MAX_JOBS!r}")
if NATIVE == "0" and CUDA == "1":
    raise SystemExit(
        "rankreg_ext: RANKREG_CUDA=1 needs the native build that RANKREG_NATIVE=0 omits"
    )


# ----------------------------------------------------------------------------------- toolchain


def torch_folder() -> tuple[Path, str]:
    """Folder and version of the torch that is built against."""
    try:
        import torch
    except Exception as error:
        raise CannotBuild(
            f"torch cannot be imported where rankreg_ext is built ({type(error).__name__}: {error})"
            "; under pip's build isolation that is always so"
        ) from error
    version = str(torch.__version__)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < TORCH_TARGET:
        raise CannotBuild(
            f"torch {version} is older than {TORCH_TARGET[0]}.{TORCH_TARGET[1]}, the first that "
            "the native library runs on"
        )
    return Path(torch.__file__).parent, version


def version_line(command: list[str], pattern: str = ".*") -> str:
    """First line of ``command --version`` that matches; a compiler that cannot say it is broken."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(
            f"`{shlex.join(command)} --version` failed: exit status {done.returncode}"
        )
    match = re.search(f"^{pattern}$", done.stdout, re.MULTILINE)
    return match[0].strip() if match else "unknown"


def cxx_command() -> list[str]:
    """The C++ compiler: CXX, else the one Python was built with, else any on PATH."""
    asked = os.environ.get("CXX")
    names = [asked] if asked else [sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"]
    for name in filter(None, names):
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise CannotBuild(f"no C++ compiler found (CXX={asked})" if asked else "no C++ compiler found")


def nvcc_command() -> Path:
    """The CUDA compiler of the toolkit asked for, or on PATH; a GPU is not needed."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.insert(2, str(Path(on_path).resolve().parent.parent))
    for candidate in filter(None, candidates):
        if (Path(candidate) / "bin" / "nvcc").is_file():
            return Path(candidate) / "bin" / "nvcc"
    raise CannotBuild("nvcc was not found (looked at CUDA_HOME, PATH and /usr/local/cuda)")


def cuda_include(nvcc: Path) -> Path:
    """The folder of the CUDA headers: nvcc knows it, which may be a script in another place."""
    said = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", said.stdout + said.stderr, re.MULTILINE)
    include = (Path(top[1]) if top else nvcc.parent.parent) / "include"
    if not (include / "cuda_runtime_api.h").is_file():
        raise CannotBuild(f"{nvcc} was found, but not its headers (looked at {include})")
    return include


def cuda_architectures(nvcc: str) -> list[str]:
    """What TORCH_CUDA_ARCH_LIST asks for, or what this nvcc knows of our defaults: sm_90 and so on.

    The last ones may be such as compute_90: code that the driver compiles, for newer devices.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked:
        archs, ptx = [], []
        for item in re.split(r"[;,\s]+", asked.strip()):
            match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", item)
            if not match:
                raise SystemExit(
                    f"rankreg_ext: TORCH_CUDA_ARCH_LIST must list such as 9.0 or 9.0+PTX; "
                    f"got {item!r}"
                )
            archs.append(match[1] + match[2])
            if match[3]:
                ptx.append(archs[-1])
    else:
        listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        archs = [arch for arch in DEFAULT_CUDA_ARCHS if f"compute_{arch}" in listed.split()]
        ptx = archs[-1:]
    if not archs:
        raise CannotBuild(f"{nvcc} knows none of the architectures {DEFAULT_CUDA_ARCHS}")
    return [f"sm_{arch}" for arch in archs] + [f"compute_{arch}" for arch in ptx]


def ninja_command() -> str:
    """The ninja program, from PATH or from the ninja package of this interpreter."""
    found = shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))
    if not found:
        raise CannotBuild("ninja was not found (pip install ninja)")
    return found


# --------------------------------------------------------------------------------- compilation


def shell(arguments: list[str]) -> str:
    """Arguments as one ninja command string, quoted for the shell and for ninja."""
    return shlex.join(arguments).replace("$", "$$")


def write_ninja(path: Path, sources: list[str], library: Path, rules: dict[str, str]) -> None:
    """Write the ninja file that compiles each source by the rule of its suffix and links all."""

    def escape(name: object) -> str:
        return re.sub(r"([$: ])", r"$\1", str(name))

    lines = ["ninja_required_version = 1.5", f"builddir = {escape(path.parent)}"]
    for name, command in rules.items():
        lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if name != "link":
            lines += ["  depfile = $out.d", "  deps = gcc"]
    objects = {source: escape(path.parent / f"{source}.o") for source in sources}
    for source, product in objects.items():
        lines.append(f"build {product}: {Path(source).suffix[1:]} {escape(source)}")
    lines.append(f"build {escape(library)}: link {' '.join(objects.values())}")
    path.write_text("\n".join(lines) + "\n")


def compile_library(ext: setuptools.Extension, version: str) -> tuple[Path, dict[str, str]]:
    """Compile and link ``ext``; return the library, and what to record of how it was made."""
    system = platform.system()
    if system not in ("Linux", "Darwin"):
        raise CannotBuild(f"the native library is not built on {system}")
    torch_root, torch_version = torch_folder()
    try:
        import pybind11
    except ImportError as error:
        raise CannotBuild("pybind11 is not installed where rankreg_ext is built") from error
    ninja = ninja_command()
    cxx = cxx_command()
    compiler = version_line(cxx)

    # Nothing here may depend on the machine that compiles (-march=native) or change what a
    # floating-point expression means; the last two flags see to that after a user's CXXFLAGS too.
    flags = ["-std=c++17", *(["-O0", "-g3"] if DEBUG else ["-O3", "-DNDEBUG"])]
    flags += ["-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    flags += ["-Wall", "-Wextra", "-Werror"] if WERROR else []
    flags += shlex.split(os.environ.get("CXXFLAGS", ""))
    flags += ["-fno-fast-math", "-ffp-contract=off"]
    defines = [
        f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000",
        f'-DRANKREG_VERSION="{version}"',
        f'-DRANKREG_FLAGS="{shlex.join(flags)}"',
    ]
    # As system headers, so that their warnings are not taken for ours; with their folders mapped
    # away, so that no error message tells where the library was built (our own sources are named
    # relative to the project). Resolved, since GCC names what a link points to.
    paths = sysconfig.get_paths()
    folders = [torch_root / "include", Path(pybind11.get_include())]
    folders += [Path(paths["include"]), Path(paths["platinclude"])]
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    headers = ["-Icsrc", *(item for folder in folders for item in ("-isystem", str(folder)))]
    maps = [f"-ffile-prefix-map={folder}/=" for folder in folders]

    libraries = [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    if system == "Linux":
        link = ["-shared", "-pthread", *([] if DEBUG else ["-Wl,-s"]), "-Wl,--no-as-needed"]
    else:
        link = ["-bundle", "-undefined", "dynamic_lookup", *([] if DEBUG else ["-Wl,-x"])]
    link += [*shlex.split(os.environ.get("LDFLAGS", "")), *libraries]
    compile_cpp = [*cxx, *flags, *defines, *headers, *maps]
    rules = {"link": shell([*cxx, *link]) + " -o $out $in"}

    if any(source.endswith(".cu") for source in ext.sources):
        nvcc = str(nvcc_command())
        compiler = f"{version_line([nvcc], pattern='Cuda compilation.*')}; {compiler}"
        host = ["-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *maps]
        flags = ["-std=c++17", *(["-O0", "-g", "-G"] if DEBUG else ["-O3", "-DNDEBUG"])]
        flags += ["-fmad=false", *(["-Werror=all-warnings"] if WERROR else [])]
        architectures = cuda_architectures(nvcc)
        flags += [
            f"-gencode=arch=compute_{code.rpartition('_')[2]},code={code}" for code in architectures
        ]
        compile_cu = [nvcc, "-ccbin", cxx[0], *flags, "-DUSE_CUDA", *defines, *headers]
        compile_cu += [f"-Xcompiler={flag}" for flag in host]
        compile_cpp += ["-DUSE_CUDA", f'-DRANKREG_CUDA_ARCHITECTURES="{" ".join(architectures)}"']
        compile_cpp += ["-isystem", str(cuda_include(Path(nvcc)))]
        link = ["-shared", *([] if DEBUG else ["-Xlinker=-s"]), "-Xlinker=--no-as-needed"]
        rules["cu"] = shell(compile_cu) + " -MD -MF $out.d -c $in -o $out"
        rules["link"] = shell([nvcc, "-ccbin", cxx[0], *link, *libraries]) + " -o $out $in"
    rules["cpp"] = shell(compile_cpp) + " -MMD -MF $out.d -c $in -o $out"

    # This folder outlives the build, editable ones too: only what changed is compiled again.
    tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}{'-debug' if DEBUG else ''}"
    folder = Path("build") / f"native-{tag}" / ext.name.rpartition(".")[2]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "library.so"
    write_ninja(folder / "build.ninja", ext.sources, library, rules)
    command = [ninja, "-f", str(folder / "build.ninja"), *(["-j", MAX_JOBS] if MAX_JOBS else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\berror\b|undefined|not found", line)]
        raise CannotBuild(f"compilation failed: {(errors or lines or ['ninja failed'])[0].strip()}")
    return library, {"torch": torch_version, "compiler": compiler, "flags": shlex.join(flags)}


# ------------------------------------------------------------------------------------ commands


def write_record(command: setuptools.Command, folder: Path, libraries: dict[str, dict]) -> None:
    """Write ``_build_info.json`` into ``folder``, the package that ``command`` fills."""
    record = {
        "version": command.distribution.get_version(),
        "python": platform.python_version(),
        "platform": sysconfig.get_platform(),
        **libraries,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build_info.json").write_text(json.dumps(record, indent=2) + "\n")


class BuildPython(build_py):
    """Copies the Python files and, where no native library is wanted, records that."""

    def run(self) -> None:
        """Start from an empty folder, so that nothing from an earlier build gets into a wheel."""
        built = Path(self.build_lib) / PACKAGE
        if not self.editable_mode:
            shutil.rmtree(built, ignore_errors=True)
        super().run()
        if NATIVE == "0":
            off = {"built": False, "reason": "switched off by RANKREG_NATIVE=0"}
            write_record(
                self, ROOT / PACKAGE if self.editable_mode else built, {"native": off, "cuda": off}
            )


class BuildNative(build_ext):
    """Builds the libraries that can be built, and records of each how it was made or why not."""

    def run(self) -> None:
        """Build ``_C``, then ``_C_cuda``; fail only for one that was asked for explicitly."""
        libraries = {
            "native": {"built": False, "reason": ""},
            "cuda": {"built": False, "reason": "switched off by RANKREG_CUDA=0"},
        }
        built = []
        for ext in self.extensions:
            kind, setting = ("cuda", CUDA) if ext.name.endswith("_cuda") else ("native", NATIVE)
            try:
                if not ext.sources:
                    raise CannotBuild(f"this release has no {kind} sources".replace("cuda", "CUDA"))
                if kind == "cuda" and not libraries["native"]["built"]:
                    raise CannotBuild("it needs the native library, which was not built")
                library, made = compile_library(ext, self.distribution.get_version())
            except CannotBuild as error:
                if setting == "1":
                    raise SystemExit(
                        f"rankreg_ext: RANKREG_{kind.upper()}=1, but {ext.name} cannot be built: "
                        f"{error}\n{REMEDY}"
                    ) from error
                print(f"rankreg_ext: {ext.name} is not built: {error}", flush=True)
                libraries[kind] = {"built": False, "reason": str(error)}
            else:
                target = Path(self.get_ext_fullpath(ext.name))
                target.parent.mkdir(parents=True, exist_ok=True)
                # Replaced, not overwritten: a process that has the old one mapped keeps it.
                target.unlink(missing_ok=True)
                shutil.copy2(library, target)
                libraries[kind] = {"built": True, "reason": None, **made}
                built.append(ext)
        self.extensions = built
        write_record(self, Path(self.get_ext_fullpath(f"{PACKAGE}._C")).parent, libraries)


def extensions() -> list[setuptools.Extension]:
    """The libraries to try; their headers are named so that an sdist holds them."""
    if NATIVE == "0":
        return []
    headers = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True))
    found = {
        "_C": glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"),
        "_C_cuda": glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu"),
    }
    if CUDA == "0":
        del found["_C_cuda"]
    return [
        setuptools.Extension(f"{PACKAGE}.{name}", sources=sorted(sources), depends=headers)
        for name, sources in found.items()
    ]


os.chdir(ROOT)
setuptools.setup(
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
)
