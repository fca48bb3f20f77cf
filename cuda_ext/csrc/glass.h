// What glass_origin refuses on every device, in the words of operators/glass.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace cl_bench {

inline void check_glass(const at::Tensor& right, const at::Tensor& down, int64_t height, int64_t width, int64_t delta) {
  const int64_t rows = std::max<int64_t>(height - 2 * delta, 0), columns = std::max<int64_t>(width - 2 * delta, 0);
  TORCH_CHECK_VALUE(
      right.dim() == 4 && down.sizes() == right.sizes() && right.size(2) == rows && right.size(3) == columns,
      "glass_origin: steps have shapes ", right.sizes(), " and ", down.sizes(), "; give (images, passes, ", rows, ", ",
      columns, ") for ", height, " x ", width, " pixels and steps of up to ", delta, ".");
  TORCH_CHECK_VALUE(
      delta >= 1 && right.is_floating_point() && down.scalar_type() == right.scalar_type() && down.device() == right.device(),
      "glass_origin: steps are two floating tensors of one dtype and device, and delta is 1 or more.");
}

}  // namespace cl_bench
