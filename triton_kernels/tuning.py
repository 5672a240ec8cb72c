"""Which way a list takes, and block shapes, by the length of a list.

Counted from instructions, not measured. Tests make these smaller, to reach every way with lists
that the interpreter has time for.
"""

import torch

WARP = 64 if torch.version.hip else 32

# --- rank -----------------------------------------------------------------------------------------

# Lists are counted up to this length; wide scores (64 bits), which no sort in registers takes,
# longer.
COUNT_MOST = 256
COUNT_MOST_WIDE = 1024
# One sort in registers: N = 16 at least, to have fewer kernels, and 4096 at most, whose code
# takes seconds to compile and is as long as an instruction cache can bear.
SORT_LEAST = 16
SORT_MOST = 4096
# Places per program where whole tensors are sorted.
PLACE_BLOCK = 1024


def count_tile(size: int) -> dict:
    """Block shape for counting lists of up to ``size`` items, a power of two.

    A thread has 4 items per load of an item that they meet; a program has 128 threads, each list
    at most 64 of them, so that few long lists are spread over more programs.
    """
    items = min(size, 4)
    lanes = min(size // items, 64)
    rows = 128 // lanes if size < 256 else 1
    return dict(ITEMS=items, ROWS=rows, LANES=lanes, num_warps=max(1, rows * lanes // WARP))


def sort_warps(size: int) -> int:
    """Warps for a sort of ``size`` items in registers: 8 items per thread."""
    return max(1, size // (8 * WARP))
