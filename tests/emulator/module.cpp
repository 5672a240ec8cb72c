// The Python module of the emulated CUDA back-end, for tests; its ops are registered by ops.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_emulator.h"
#include "emulated.h"
#include "planted.h"
#include "radix_ops.h"

namespace py = pybind11;

namespace rankreg {
namespace gpu {

EmulatedGpu& emulated_gpu() {
  static EmulatedGpu gpu;
  return gpu;
}

}  // namespace gpu
}  // namespace rankreg

PYBIND11_MODULE(rankreg_emulated, m) {
  m.def("set_seed", &emulator::set_seed, "Order of threads and blocks: 0 natural, else shuffled.");
  m.def("launches", &emulator::launches, "Kernel launches so far.");
  m.def("set_gpu", [](int multiprocessors, int64_t shared_most) {
    rankreg::gpu::emulated_gpu() = {multiprocessors, shared_most};
  });
  m.def("set_radix_tuning", [](int64_t together_most, int64_t elements_most) {
    rankreg::gpu::emulated_radix_tuning() = {together_most, elements_most};
  });
  m.def("planted", &planted::run, "What a kernel with a planted defect computes; see planted.h.");
}
