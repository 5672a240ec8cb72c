"""Which way a list takes, and block shapes, by the length of a list.

Counted from instructions, not measured. Tests make these smaller, to reach every way with lists
that the interpreter has time for.
"""

import torch

WARP = 64 if torch.version.hip else 32

# --- rank -----------------------------------------------------------------------------------------

# Lists are counted up to this length, at 2.6 instructions per pair forward and 3.3 backward: 330
# and 420 per item here, where a sort in registers takes 300 and 340 at 256. 64-bit scores, which
# that does not take, are counted until the launches of torch.sort and its passes cost less.
COUNT_MOST = 128
COUNT_MOST_WIDE = 1024
# A sort in registers: of 16 items at least, to have fewer kernels. At 2048 it takes 700
# instructions per item; 4096 would take 930, compile for longer still, and spill on gfx942.
SORT_LEAST = 16
SORT_MOST = 2048
# Places per program where whole tensors are sorted.
PLACE_BLOCK = 1024


def count_tile(size: int) -> dict:
    """Block shape for counting lists of up to ``size`` items, a power of two.

    A thread has 4 items, and loads any item that they meet once: 8 items would make that 2.3
    instructions per pair, but half as many threads. A program has 128 threads, or 64 with one
    list's tile of 256 items, so that few long lists spread over more programs.
    """
    items = min(size, 4)
    lanes = min(size // items, 64)
    rows = 128 // lanes if size < 256 else 1
    return dict(ITEMS=items, ROWS=rows, LANES=lanes, num_warps=max(1, rows * lanes // WARP))


def sort_warps(size: int) -> int:
    """Warps for a sort of ``size`` items in registers: 8 items per thread."""
    return max(1, size // (8 * WARP))


# --- rare positives of short lists (positives_list.py) --------------------------------------------
# A program holds its list, and compares it with LIST_THRESHOLDS positives at a time. Longer lists
# are streamed. At most 2^15: two counts share a word.
LIST_MOST = 1024
# More thresholds at a time cost lists with few of them idle comparisons; fewer cost the others more
# trips to L2. Half of it for float64: every thread holds all of them, and their targets.
LIST_THRESHOLDS = 16
# Items a warp. 8 x 16 comparisons a thread, two instructions each, outweigh the 16 reductions over
# the warp that follow.
LIST_ITEMS_PER_WARP = 256
# Warps in all, whose programs take lists in turn: twice what 132 multiprocessors hold. Scratch is
# bounded by it: at most 32 KB for each of these warps' lists is reserved, far less is touched.
LIST_WARPS = 16384

# --- the loss of many lists (loss_sum.py) ---------------------------------------------------------
# Up to this many lists one launch whose programs all read everything: 12 bytes a list, from L2.
# Beyond, torch's reductions, which split the work, and a handful of launches.
SUM_MOST = 16384
SUM_BLOCK = 2048

# --- rare positives of long lists (positives_stream.py) -------------------------------------------
# Items that a program reads at once, and its warps: 8 items a thread hide the latency of a load and
# of a search, whose steps wait for each other, in about 80 registers.
STREAM_BLOCK = 2048
STREAM_WARPS = 8
# A list is split into tiles of whole blocks, at most so many: a program adds up what tiles have
# found. Fewer where many lists are long, as a program begins and ends with work that is not
# streaming: so many programs for all lists fill a GPU of 132 multiprocessors eight times over.
STREAM_TILES = 1024
STREAM_PROGRAMS = 132 * 8
# The chunks of many positives are shared out to so many programs.
STREAM_CHUNK_PROGRAMS = 132
# Up to so many positives meet every score: 2 instructions each forward, 6 backward. A search costs
# about 6 a step, of 5 to 10, and a histogram 6 where Triton has one of atomics in shared memory
# (3.9), 20 to 170 by the number of bins where it has one of ballots (3.6).
STREAM_FEW = 16
STREAM_FEW_BACKWARD = 8
# Less than NARROW positives are sorted and counted among themselves; more in chunks of CHUNK. FEW <
# NARROW <= CHUNK / 2.
STREAM_NARROW = 128
STREAM_CHUNK = 1024

# --- hinge violations (hinge_violations.py) -------------------------------------------------------
# A program holds its list, and compares it with HINGE_THRESHOLDS positives at a time: 3
# instructions of float64 a pair, of which a multiprocessor of an H100 issues 64 a clock. With half
# of HINGE_MOST items positive that is 12,000 clocks, and more than a dozen launches, of sorting and
# along the sorted list, are saved.
HINGE_LEAST = 32
HINGE_MOST = 1024
HINGE_THRESHOLDS = 4
# Programs, which take lists in turn: scratch is bounded by it, to 100 MB.
HINGE_PROGRAMS = 4096
# Places that a program reads at once, and into how many chunks a list is split at most.
HINGE_BLOCK = 1024
HINGE_CHUNKS = 1024


def hinge_warps(block: int) -> int:
    """Warps for a list in blocks of so many items: 8 items a thread."""
    return max(1, block // (8 * WARP))
