// The Python module rankreg_ext._C_cuda: importing it registers the CUDA kernels (ops.cpp).
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = RANKREG_VERSION;
  info["cuda"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["architectures"] = RANKREG_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of rankreg_ext; its operations are in torch.ops.rankreg_ext.";
  m.def("build_info", &build_info, "Facts about this build: version, cuda, architectures.");
}
