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
