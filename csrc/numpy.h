// Binds the NumPy entry points into the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace rankreg {

void bind_numpy(pybind11::module_& module);

}  // namespace rankreg
