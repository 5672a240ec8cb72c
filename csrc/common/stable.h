// Every torch header and alias of the registering files, in one place. They are of the LibTorch
// stable ABI alone, so that one binary serves the targeted torch (2.11) and every newer one.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace rankreg {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
}  // namespace rankreg
