// glass_origin on the CPU: the walk itself, image by image on torch's own threads.
#include "../glass.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace cl_bench {
namespace {

at::Tensor glass_origin(const at::Tensor& right, const at::Tensor& down, int64_t height, int64_t width, int64_t delta) {
  check_glass(right, down, height, width, delta);
  const at::Tensor r = right.to(at::kFloat).contiguous(), d = down.to(at::kFloat).contiguous();
  const int64_t images = r.size(0), passes = r.size(1), rows = r.size(2), columns = r.size(3), pixels = height * width;
  const at::Tensor origin = at::empty({images, pixels}, r.options().dtype(at::kLong));
  const float* const steps_right = r.const_data_ptr<float>();
  const float* const steps_down = d.const_data_ptr<float>();
  int64_t* const to = origin.mutable_data_ptr<int64_t>();
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      int64_t* const o = to + n * pixels;
      for (int64_t p = 0; p < pixels; ++p) {
        o[p] = p;
      }
      const float* x = steps_right + n * passes * rows * columns;
      const float* y = steps_down + n * passes * rows * columns;
      for (int64_t pass = 0; pass < passes; ++pass) {
        for (int64_t i = 0; i < rows; ++i) {
          int64_t* here = o + (height - delta - i) * width + width - delta;
          for (int64_t j = 0; j < columns; ++j, --here, ++x, ++y) {
            *here = here[static_cast<int64_t>(*y) * width + static_cast<int64_t>(*x)];
          }
        }
      }
    }
  });
  return origin;
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CPU, m) {
  m.impl("glass_origin", &cl_bench::glass_origin);
}
