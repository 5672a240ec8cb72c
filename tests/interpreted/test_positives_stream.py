"""Rare positives of long lists, in Triton's interpreter: equal to the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import FLOATS, LAYOUTS, MASKS, VALUES, Case, assert_equal, cases, laid_out, sprinkle

from rankreg_ext import _ops
from rankreg_ext.reference import compute_dtype
from rankreg_ext.triton_kernels import positives_stream as stream
from rankreg_ext.triton_kernels import tuning

# block, tiles, programs, chunk programs, few, few backward, narrow, chunk: so small that lists of
# some hundred items have many tiles, and several blocks, chunks and shares.
SHAPES = {
    "tiles": (32, 32, 10**6, 3, 2, 2, 4, 16),
    "blocks": (32, 32, 0.1, 2, 4, 2, 8, 32),
    "few": (64, 32, 10**6, 1, 16, 8, 16, 32),
}
