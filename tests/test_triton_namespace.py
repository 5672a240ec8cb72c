"""`triton_kernels` is a part of rankreg_ext, never a package of its own: that name is Triton's."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


def test_bare_import_is_refused_and_names_the_right_import():
    done = python("import triton_kernels", cwd=ROOT)  # the folder lies on the path there
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "import it as 'rankreg_ext.triton_kernels'" in last


def test_refused_import_leaves_no_module_behind():
    code = """
import sys
for _ in range(2):
    try:
        import triton_kernels
    except ImportError:
        pass
    else:
        raise SystemExit("was imported")
assert "triton_kernels" not in sys.modules
"""
    done = python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_bare_name_is_not_installed(tmp_path):
    code = "import importlib.util as u; spec = u.find_spec('triton_kernels'); print(spec)"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Another project's package of that name may be installed; ours must not be it.
    assert str(ROOT) not in done.stdout


def test_imports_without_triton(tmp_path):
    code = """
import sys
sys.modules["triton"] = None  # any import of it raises ImportError
import rankreg_ext.triton_kernels as kernels
assert kernels.__name__ == "rankreg_ext.triton_kernels"
assert "rank" in kernels.KERNELS
from rankreg_ext import _backend
print(_backend.usable("triton"))
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "triton is not installed"
