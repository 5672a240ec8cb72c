"""The version of the package; `pyproject.toml` and the native library take it from here."""

__version__ = "0.1.0"
