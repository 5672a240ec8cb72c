"""The package as users get it: installed in each way, in environments that hold nothing else.

Such an environment sees torch and the build tools of this interpreter through links, and neither
its other packages nor its own (editable) installation of rankreg_ext.
"""

import ast
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BUILD_TOOLS = ("setuptools", "wheel", "pybind11", "ninja")
QUICK = {"CXXFLAGS": "-O0"}
NOT_COPIED = (
    ".*",
    "build",
    "dist",
    "*.egg-info",
    "*.so",
    "_build_info.json",
    "__pycache__",
    "runs",
)

pytestmark = pytest.mark.packaging
linux_only = pytest.mark.skipif(platform.system() != "Linux", reason="looks into ELF files")

# Run in each environment, far away from the sources.
EXERCISE = """
import importlib.metadata, json
import torch
import rankreg_ext
import rankreg_ext.triton_kernels
from rankreg_ext import _backend

try:
    import triton_kernels
    bare = True
except ModuleNotFoundError:
    bare = False
scores = torch.tensor([0.3, 0.1, 0.7, 0.6, 0.8], requires_grad=True)
positives = torch.tensor([True, False, False, False, False])
loss = rankreg_ext.rankreg_loss(scores, positives, lam=1.0)
loss.backward()
result = {
    "file": rankreg_ext.__file__,
    "version": rankreg_ext.__version__,
    "metadata": importlib.metadata.version("rankreg_ext"),
    "requires": importlib.metadata.requires("rankreg_ext"),
    "bare": bare,
    "config": rankreg_ext.show_config(),
    "cpu": _backend.usable("cpu"),
    "cuda": _backend.usable("cuda"),
    "record": _backend.build_info(),
    "ranks": rankreg_ext.rank(scores).tolist(),
    "loss": loss.item(),
    "grad": scores.grad.tolist(),
}
if result["cpu"] is None:
    with rankreg_ext.use_backend("cpu"):
        result["ranks on cpu"] = rankreg_ext.rank(scores).tolist()
print(json.dumps(result))
"""


def run(command, cwd, **env) -> subprocess.CompletedProcess:
    """Run ``command`` without the settings of the process that runs the tests, but for ``env``.

    Without CUDA, unless ``env`` wants it: to compile it takes minutes.
    """
    ours = ("RANKREG_", "PYTHON", "COV_", "COVERAGE_", "PYTEST_", "CUDA_", "TORCH_")
    other = ("CXX", "CXXFLAGS", "LDFLAGS", "DEBUG", "MAX_JOBS", "LD_PRELOAD")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in other}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**clean, "RANKREG_CUDA": "0", **env},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done


def copy_project(target: Path) -> Path:
    """The files of the project that may matter to a build, without anything built."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_COPIED, "experiments"))
    return target


def link_distributions(names: tuple[str, ...], folder: Path) -> Path:
    """Links in ``folder`` to the installed distributions ``names`` and all that they require."""
    folder.mkdir()
    seen, todo = set(), list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files if path.parts[0] != ".."}:
            link = folder / top
            if top != "__pycache__" and not link.exists():
                link.symlink_to(distribution.locate_file(top))
        requirements = map(Requirement, distribution.requires or ())
        todo += [r.name for r in requirements if r.marker is None or r.marker.evaluate()]
    return folder


class Environment:
    """A virtual environment that holds nothing but what lies in ``libraries``."""

    def __init__(self, path: Path, libraries: Path):
        venv.create(path, with_pip=False, symlinks=True)
        self.path = path
        self.python = path / "bin" / "python"
        (site,) = path.glob("lib/python*/site-packages")
        (site / "libraries.pth").write_text(f"{libraries}\n")
        ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        (path / "bin" / "ninja").symlink_to(ninja)

    def pip(self, *arguments, cwd: Path, **env) -> subprocess.CompletedProcess:
        """Pip of this interpreter, working on and in this environment, offline."""
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        return run(command, cwd, PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1", **env)

    def install(self, *arguments, cwd: Path, **env) -> None:
        done = self.pip("install", "--no-build-isolation", *arguments, cwd=cwd, **env)
        assert done.returncode == 0, done.stdout

    def exercise(self, cwd: Path, **env) -> dict:
        done = run([self.python, "-W", "ignore", "-c", EXERCISE], cwd, **env)
        assert done.returncode == 0, done.stdout
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """Torch and the build tools, and nothing else: numpy, for one, is not there."""
    folder = tmp_path_factory.mktemp("libraries")
    linked = link_distributions(("torch", *BUILD_TOOLS), folder / "all")
    assert not (linked / "numpy").exists()
    assert not (linked / "rankreg_ext").exists()
    return linked


@pytest.fixture
def environment(tmp_path, libraries) -> Environment:
    return Environment(tmp_path / "environment", libraries)


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """One copy of the project for all whole builds, with the settings QUICK: they share objects.

    The build that ships is the one that the other tests run on.
    """
    return copy_project(tmp_path_factory.mktemp("project") / "project")


@pytest.fixture(scope="module")
def small_project_built(tmp_path_factory, libraries) -> Path:
    """A copy whose native library is quick to compile, compiled: it registers no operations."""
    folder = tmp_path_factory.mktemp("small")
    copy = copy_project(folder / "project")
    kept = {"module.cpp", "cpu/isa.h", "cpu/isa.cpp"}
    for path in (copy / "csrc").rglob("*"):
        if path.is_file() and path.relative_to(copy / "csrc").as_posix() not in kept:
            path.unlink()
    module = copy / "csrc" / "module.cpp"
    lines = module.read_text().splitlines()
    module.write_text("\n".join(line for line in lines if "numpy" not in line) + "\n")
    environment = Environment(folder / "environment", libraries)
    done = run([environment.python, "setup.py", "build_ext"], copy, RANKREG_NATIVE="1", **QUICK)
    assert done.returncode == 0, done.stdout
    return copy


@pytest.fixture
def small_project(tmp_path, small_project_built) -> Path:
    """A copy of the copy; with the settings QUICK, it finds its objects up to date."""
    return Path(shutil.copytree(small_project_built, tmp_path / "small"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, project, libraries) -> SimpleNamespace:
    """A wheel, built by pip from the project; its names and an open archive."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = Environment(folder / "environment", libraries)
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", folder, ".")
    done = environment.pip(*command, cwd=project, **QUICK)
    assert done.returncode == 0, done.stdout
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (library,) = (name for name in files if re.match(r"rankreg_ext/_C\..*so$", name))
    return SimpleNamespace(path=path, files=files, library=library)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory, project, libraries) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    environment = Environment(folder / "environment", libraries)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    done = run([environment.python, "-c", code], project)
    assert done.returncode == 0, done.stdout
    (path,) = folder.glob("*.tar.gz")
    return path


def version() -> str:
    (assignment,) = (
        node
        for node in ast.parse((ROOT / "rankreg_ext" / "_version.py").read_text()).body
        if isinstance(node, ast.Assign)
    )
    return ast.literal_eval(assignment.value)


def check(result: dict, installed_in: Path, native: bool) -> None:
    """What must hold of every installation."""
    assert Path(result["file"]).is_relative_to(installed_in)
    assert result["version"] == result["metadata"] == result["record"]["version"] == version()
    assert [r for r in result["requires"] if "extra ==" not in r] == ["torch>=2.11"]
    assert not result["bare"]
    assert result["ranks"] == [4.0, 5.0, 2.0, 3.0, 1.0]
    # One positive at rank 4 of 5. Moved by h = 2 * 4/5 it gains three places, three items lose one.
    assert result["loss"] == pytest.approx((4 / 5) ** 2)
    assert result["grad"] == pytest.approx([-3 / 5, 0, 1 / 5, 1 / 5, 1 / 5])
    assert result["record"]["native"]["built"] is native
    if native:
        assert result["cpu"] is None
        assert result["ranks on cpu"] == result["ranks"]
        assert re.search(r"^  cpu +usable$", result["config"], re.MULTILINE)
        assert f"version      {version()}" in result["config"]
    else:
        reason = result["record"]["native"]["reason"]
        assert reason
        assert result["cpu"] == f"not built: {reason}"
        assert f"  cpu        off: not built: {reason}" in result["config"]
    assert re.search(r"^  reference +usable$", result["config"], re.MULTILINE)


# --- the ways to install --------------------------------------------------------------------------


def test_pip_install(environment, project, elsewhere):
    environment.install(".", cwd=project, **QUICK)
    check(environment.exercise(elsewhere), environment.path, native=True)


def test_pip_install_editable(environment, project, elsewhere):
    environment.install("-e", ".", cwd=project, **QUICK)
    check(environment.exercise(elsewhere), project, native=True)
    # Python puts the working directory first on its path: the mapped package must be found there
    # too. The bare folder is then found as well, and refuses.
    code = "import rankreg_ext.triton_kernels as t; print(t.__name__)\nimport triton_kernels"
    done = run([environment.python, "-c", code], project)
    assert "rankreg_ext.triton_kernels" in done.stdout.splitlines()
    assert "ImportError: this is not Triton's own package" in done.stdout


def test_wheel(environment, wheel, elsewhere):
    environment.install(wheel.path, cwd=elsewhere)
    check(environment.exercise(elsewhere), environment.path, native=True)


def test_sdist(environment, sdist, tmp_path, elsewhere):
    # -O0: what is tested is that the sdist is complete.
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist)
    done = environment.pip(*command, cwd=elsewhere, RANKREG_NATIVE="1", **QUICK)
    assert done.returncode == 0, done.stdout
    (path,) = tmp_path.glob("*.whl")
    environment.install(path, cwd=elsewhere)
    result = environment.exercise(elsewhere)
    check(result, environment.path, native=True)
    assert " -O0 " in result["record"]["native"]["flags"]


# --- what is in them ------------------------------------------------------------------------------


def test_wheel_holds_the_package_and_nothing_else(wheel):
    info = f"rankreg_ext-{version()}.dist-info"
    assert {name.split("/")[0] for name in wheel.files} == {"rankreg_ext", info}
    assert f"{info}/licenses/LICENSE" in wheel.files
    modules = {f"{path.relative_to(ROOT)}" for path in (ROOT / "rankreg_ext").rglob("*.py")}
    modules |= {
        f"rankreg_ext/{p.relative_to(ROOT)}" for p in (ROOT / "triton_kernels").rglob("*.py")
    }
    others = {"rankreg_ext/py.typed", "rankreg_ext/_build_info.json", wheel.library}
    shipped = {name for name in wheel.files if name.startswith("rankreg_ext/")}
    assert shipped == modules | others


def test_record_names_what_the_library_was_built_with(wheel):
    record = json.loads(wheel.files["rankreg_ext/_build_info.json"])
    assert record["version"] == version()
    assert record["python"] == platform.python_version()
    assert record["native"]["torch"] == importlib.metadata.version("torch")
    assert record["native"]["compiler"]
    flags = record["native"]["flags"].split()
    assert "-O3" in flags
    assert flags[-1] == "-ffp-contract=off"  # last, so that nothing undoes it
    assert not {"-march=native", "-ffast-math", "-Ofast"} & set(flags)


@linux_only
def test_library_is_stripped_and_tells_nothing_of_where_it_was_built(
    wheel, project, libraries, tmp_path
):
    blob = wheel.files[wheel.library]
    for folder in (project, project.parent, libraries, ROOT, sys.prefix, sys.base_prefix):
        assert str(folder).encode() not in blob
    library = tmp_path / "library.so"
    library.write_bytes(blob)
    sections = run(["readelf", "-SW", library], tmp_path).stdout
    assert ".dynsym" in sections
    assert ".symtab" not in sections
    assert ".debug" not in sections
    dynamic = run(["readelf", "-dW", library], tmp_path).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert {"libtorch.so", "libtorch_cpu.so", "libc10.so"} <= set(needed)
    assert not any("torch_python" in name or "libpython" in name for name in needed)
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


@linux_only
def test_library_uses_only_the_stable_abi_of_torch(wheel, tmp_path):
    library = tmp_path / "library.so"
    library.write_bytes(wheel.files[wheel.library])
    listed = run(["nm", "-D", "--undefined-only", library], tmp_path)
    assert listed.returncode == 0, listed.stdout
    undefined = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert any(name.startswith("Py") for name in undefined)  # the list is not empty by mistake
    # In a mangled name the namespaces of torch stand with their length before them.
    assert [name for name in undefined if re.match(r"_Z.*?(2at|3c10|5torch|5caffe)", name)] == []


@pytest.mark.skipif(not shutil.which("objdump"), reason="there is no objdump here")
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="other machines have one instruction set"
)
def test_functions_shared_with_other_code_are_baseline_code(project, wheel):
    """An inline function of a header may be taken from any of the objects that hold a copy."""
    pattern = "build/native-*/_C/csrc/cpu/isa_*.o"
    objects = list(ROOT.glob(pattern)) or list(project.glob(pattern))  # as shipped, if built here
    assert {path.name for path in objects} >= {"isa_avx2.cpp.o", "isa_avx512.cpp.o"}
    for path in objects:
        symbols = run(["nm", "--defined-only", str(path)], project).stdout
        weak = {line.split()[2] for line in symbols.splitlines() if line.split()[1] in "WVu"}
        code = run(["objdump", "-d", "--no-show-raw-insn", str(path)], project).stdout
        wide = set()
        for line in code.splitlines():
            if line.endswith(">:"):
                name = line.split("<")[1][:-2]
            elif re.search(r":\s+v[a-z]", line):  # VEX or EVEX, be it on 128 bits
                wide.add(name)
        ours = re.compile(r"rankreg\d+(avx2|avx512)")
        assert not {symbol for symbol in wide & weak if not ours.search(symbol)}
        assert bool(wide) == ("baseline" not in path.name)


def test_sdist_holds_all_sources(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if "/" in name}
    csrc = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".cpp", ".h", ".cu", ".cuh")
    }
    assert any(name.endswith(".h") for name in csrc)
    assert csrc <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py", "rankreg_ext/py.typed"} <= names
    assert "triton_kernels/__init__.py" in names
    assert not [n for n in names if n.startswith(("tests", "benchmarks")) or n.endswith(".so")]
    assert "rankreg_ext/_build_info.json" not in names


def test_wheel_holds_nothing_of_an_earlier_build(small_project, environment):
    package = small_project / "rankreg_ext"
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    for name, build in (("gone.py", {}), ("later.py", {"RANKREG_NATIVE": "0"})):
        (package / name).touch()
        done = run([environment.python, "-c", code], small_project, **QUICK, **build)
        assert done.returncode == 0, done.stdout
        (package / name).unlink()
    shutil.rmtree(small_project / "dist")
    done = run([environment.python, "-c", code], small_project, CXX=shutil.which("false"))
    assert done.returncode == 0, done.stdout
    (path,) = (small_project / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert not [n for n in names if n.endswith((".so", "gone.py", "later.py"))]


# --- settings, and what is done where something is missing ----------------------------------------


@pytest.fixture
def failing_compiler(tmp_path) -> str:
    """A compiler that is there, and cannot compile."""
    script = tmp_path / "failing-c++"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "failing-c++ 1.0" && exit 0\n'
        'echo "failing-c++: error: cannot compile this" >&2\nexit 1\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("kind", ["dead", "missing", "failing"])
def test_without_a_compiler_the_install_succeeds_and_says_why(
    kind, failing_compiler, environment, small_project, elsewhere
):
    compiler, reason = {
        "dead": (shutil.which("false"), "--version` failed: exit status 1"),
        "missing": ("no-such-c++", "no C++ compiler found (CXX=no-such-c++)"),
        "failing": (
            failing_compiler,
            "compilation failed: failing-c++: error: cannot compile this",
        ),
    }[kind]
    environment.install(".", cwd=small_project, CXX=compiler)
    result = environment.exercise(elsewhere)
    check(result, environment.path, native=False)
    assert reason in result["config"]


def test_required_native_library_that_cannot_be_built_is_an_error(
    failing_compiler, environment, small_project
):
    done = environment.pip(
        "install", "--no-build-isolation", ".", cwd=small_project,
        CXX=failing_compiler, RANKREG_NATIVE="1",
    )  # fmt: skip
    assert done.returncode != 0
    assert "RANKREG_NATIVE=1, but rankreg_ext._C cannot be built: compilation failed" in done.stdout
    assert "pip install --no-build-isolation ." in done.stdout


def test_native_off_gives_a_pure_wheel(environment, small_project, tmp_path, elsewhere):
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ".")
    done = environment.pip(*command, cwd=small_project, RANKREG_NATIVE="0")
    assert done.returncode == 0, done.stdout
    (path,) = tmp_path.glob("*.whl")
    assert path.name == f"rankreg_ext-{version()}-py3-none-any.whl"
    environment.install(path, cwd=elsewhere)
    result = environment.exercise(elsewhere)
    check(result, environment.path, native=False)
    assert "off: not built: switched off by RANKREG_NATIVE=0" in result["config"]


def test_editable_install_forgets_a_library_that_is_no_longer_built(
    environment, small_project, elsewhere
):
    environment.install("-e", ".", cwd=small_project, **QUICK)
    assert environment.exercise(elsewhere)["cpu"] is None
    environment.install("-e", ".", cwd=small_project, RANKREG_NATIVE="0")
    check(environment.exercise(elsewhere), small_project, native=False)


def test_build_without_torch_is_pure_python_and_says_so(
    environment, small_project, tmp_path, elsewhere
):
    # As under pip's build isolation, where the build requirements are there and torch is not.
    tools = link_distributions(BUILD_TOOLS, tmp_path / "tools")
    builder = Environment(tmp_path / "builder", tools)
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ".")
    done = builder.pip(*command, cwd=small_project)
    assert done.returncode == 0, done.stdout
    (path,) = tmp_path.glob("*.whl")
    environment.install(path, cwd=elsewhere)
    result = environment.exercise(elsewhere)
    check(result, environment.path, native=False)
    assert "torch cannot be imported where rankreg_ext is built" in result["config"]
    done = builder.pip(*command, cwd=small_project, RANKREG_NATIVE="1")
    assert done.returncode != 0
    assert "pip install --no-build-isolation ." in done.stdout


def test_cuda_that_is_required_and_impossible_is_an_error(environment, small_project):
    command = ("install", "--no-build-isolation", ".")
    done = environment.pip(*command, cwd=small_project, RANKREG_CUDA="1", **QUICK)
    assert done.returncode != 0
    message = "RANKREG_CUDA=1, but rankreg_ext._C_cuda cannot be built: "
    assert message + "this release has no CUDA sources" in done.stdout
    done = environment.pip(*command, cwd=small_project, RANKREG_CUDA="1", RANKREG_NATIVE="0")
    assert done.returncode != 0
    assert "RANKREG_CUDA=1 needs the native build" in done.stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, though no GPU")
def test_cuda_sources_are_compiled_where_nvcc_exists(environment, small_project, elsewhere):
    (small_project / "csrc" / "cuda").mkdir(exist_ok=True)
    (small_project / "csrc" / "cuda" / "probe.cu").write_text(
        "#include <torch/csrc/stable/library.h>\n"
        "__global__ void probe(float* x) { x[threadIdx.x] += 1.0f; }\n"
        'extern "C" __attribute__((visibility("default"))) int rankreg_probe(float* x) {\n'
        "  probe<<<1, 32>>>(x);\n  return static_cast<int>(cudaGetLastError());\n}\n"
    )
    settings = {"RANKREG_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}
    environment.install(".", cwd=small_project, **settings, **QUICK)
    result = environment.exercise(elsewhere)
    check(result, environment.path, native=True)
    assert result["record"]["cuda"]["built"] is True
    flags = result["record"]["cuda"]["flags"]
    assert re.findall(r",code=(\w+)", flags) == ["sm_80", "sm_90", "compute_90"]
    assert "-fmad=false" in flags and "fast" not in flags
    assert list(environment.path.glob("lib/python*/site-packages/rankreg_ext/_C_cuda.*.so"))
    if torch.version.cuda is None:
        assert result["cuda"] == "this torch was built without CUDA"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANKREG_NATIVE", "yes"),
        ("RANKREG_CUDA", "2"),
        ("RANKREG_WERROR", "true"),
        ("DEBUG", "on"),
        ("MAX_JOBS", "0"),
    ],
)
def test_invalid_setting_is_an_error_that_names_it(name, value, environment, project):
    done = run([environment.python, "setup.py", "--version"], project, **{name: value})
    assert done.returncode != 0
    assert re.search(rf"rankreg_ext: {name} must be .*; got '{value}'", done.stdout)
