// The Python module rankreg_ext._C: facts about this build of the native library.
//
// The operations themselves are registered with torch by ops.cpp, in the same library; this file
// knows nothing of torch, so that pybind11 never meets torch's headers.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "numpy.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

#if defined(__x86_64__)
constexpr const char* kArchitecture = "x86_64";
#elif defined(__aarch64__)
constexpr const char* kArchitecture = "aarch64";
#else
constexpr const char* kArchitecture = "other";
#endif

#if defined(__OPTIMIZE__)
constexpr bool kOptimized = true;
#else
constexpr bool kOptimized = false;
#endif

#if defined(NDEBUG)
constexpr bool kDebug = false;
#else
constexpr bool kDebug = true;
#endif

// The oldest torch that this library runs on: TORCH_TARGET_VERSION holds major and minor in its
// two highest bytes.
std::string torch_target() {
  constexpr unsigned long long target = TORCH_TARGET_VERSION;
  return std::to_string(target >> 56) + "." + std::to_string((target >> 48) & 0xff);
}

py::dict build_info() {
  py::dict info;
  info["version"] = RANKREG_VERSION;
  info["compiler"] = kCompiler;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["flags"] = RANKREG_FLAGS;
  info["optimized"] = kOptimized;
  info["debug"] = kDebug;
  info["architecture"] = kArchitecture;
  info["torch_target"] = torch_target();
  return info;
}

py::tuple isas() {
  py::list names;
  for (const rankreg::Isa isa : rankreg::isas())
    names.append(rankreg::name(isa));
  return py::tuple(names);
}

void use_isa(const std::string& wanted) {
  for (const rankreg::Isa isa : rankreg::isas()) {
    if (wanted == rankreg::name(isa)) return rankreg::use_isa(isa);
  }
  throw std::invalid_argument("use_isa: isa must be one of those that isas() lists, got '" +
                              wanted + "'");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native library of rankreg_ext; its operations are in torch.ops.rankreg_ext.";
  m.def("build_info", &build_info,
        "Facts about this build: version, compiler, cxx_standard, flags, optimized, debug, "
        "architecture, torch_target.");
  m.def("isas", &isas, "Instruction sets that this machine can run, the widest last.");
  m.def(
      "isa", [] { return rankreg::name(rankreg::isa()); },
      "The instruction set whose kernels are in use.");
  m.def("use_isa", &use_isa, py::arg("isa"),
        "Use the kernels of another instruction set, for tests and timings; all give equal "
        "results.");
  rankreg::bind_numpy(m);
}
