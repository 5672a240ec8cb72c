"""Tests of the Triton kernels in Triton's interpreter, which has to be chosen before the import.

``pytest tests/interpreted`` with TRITON_INTERPRET=1; tests/test_triton.py does that in processes
of their own. Without the variable nothing here is collected.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    import interpreter  # noqa: F401
