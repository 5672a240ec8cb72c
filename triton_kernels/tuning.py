"""Which way a list takes, and block shapes, by the length of a list.

Counted from instructions, not measured. Tests make these smaller, to reach every way with lists
that the interpreter has time for.
"""

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
