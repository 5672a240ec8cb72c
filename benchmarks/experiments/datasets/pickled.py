"""Reads the Python version of CIFAR, which is pickled, without trusting the file.

A pickle is a program: ``pickle.load`` imports and calls whatever the file names. Here a file gets
dicts, lists, tuples, numbers, strings and bytes, which pickle makes by itself, and arrays of bytes;
any other name that it asks for is refused. The few names with which NumPy pickles an array are
given to stand-ins below that check what they get, so that the file calls no function of NumPy
either.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .common import DataError


class _Dtype:
    """Stands in for ``numpy.dtype``: of bytes, or an error."""

    def __init__(self, name: Any, *flags: Any) -> None:
        if name not in ("u1", "|u1", "uint8", b"u1", b"|u1", b"uint8"):
            raise pickle.UnpicklingError(f"holds an array of dtype {name!r}, expected uint8")

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and alignment, which bytes have none of


class _Array:
    """Stands in for ``numpy.ndarray``."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, raw = state
        self.values = _array(raw, dtype, shape, "F" if fortran_order else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not (
        isinstance(raw, bytes | bytearray)
        and isinstance(dtype, _Dtype)
        and isinstance(shape, tuple)
        and all(isinstance(size, int) and size >= 0 for size in shape)
        and math.prod(shape) == len(raw)
    ):
        raise pickle.UnpicklingError("holds an array whose size does not fit its shape")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, *_: Any) -> _Array:
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.values = _array(raw, dtype, shape, order)
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """Stands in for ``codecs.encode``, by which Python 3 writes bytes in old protocols."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("holds text where bytes should be")
    return text.encode("latin1")


# As written by NumPy 1 and, since 2.0, with an underscore.
_STAND_INS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"asks for {module}.{name}, which no CIFAR file needs"
            ) from None


def load(path: Path) -> dict[str, Any]:
    """The dict in the file, with keys as strings and arrays of bytes as NumPy arrays.

    Raises:
        DataError: if the file cannot be read, is cut off, or asks for anything else.
    """
    try:
        with open(path, "rb") as file:
            # Python 2 wrote the official files: its strings are bytes.
            content = _Unpickler(file, encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"holds a {type(content).__name__}, expected a dict")
        return {
            key.decode("latin1") if isinstance(key, bytes) else str(key): (
                value.values if isinstance(value, _Array) else value
            )
            for key, value in content.items()
        }
    except Exception as error:  # whatever a damaged file makes pickle raise
        raise DataError(f"{path}: truncated, damaged or no pickled CIFAR file: {error}") from error
