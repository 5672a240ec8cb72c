"""Which way a list takes, and block shapes, by the length of a list.

Counted from instructions, not measured. Tests make these smaller, to reach every way with lists
that the interpreter has time for.
"""

# --- rare positives of short lists (positives_list.py) --------------------------------------------
# A program holds its list, and compares it with LIST_THRESHOLDS positives at a time. Longer lists
# are streamed. At most 2^15: places in a list are kept in 16 bits.
LIST_MOST = 1024
# In a tile of THRESHOLDS x n every thread adds up its own items for every threshold, and one
# instruction a threshold and warp (redux on NVIDIA since sm_80) adds up a warp's: more thresholds
# cost the lists with fewer of them idle lanes, fewer cost the others a round trip to memory each.
LIST_THRESHOLDS = 16
# Items a thread: 8 x 16 comparisons, about 2.5 instructions each, hide those reductions.
LIST_ITEMS_PER_WARP = 256

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
