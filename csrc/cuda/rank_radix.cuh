// Full ranks of long lists by radix sorts: in a block's shared memory, or by the whole GPU.
#pragma once

#include "rank_block_radix.cuh"
#include "rank_device_radix.cuh"
