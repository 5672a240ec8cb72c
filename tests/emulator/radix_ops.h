// How radix_ops.cpp chooses between sorts of one list and of many; tests set it.
#pragma once

#include "../../csrc/cuda/tuning.h"

namespace rankreg {
namespace gpu {

DeviceRadixTuning& emulated_radix_tuning();

}  // namespace gpu
}  // namespace rankreg
