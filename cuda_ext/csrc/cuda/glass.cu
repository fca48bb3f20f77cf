// glass_origin on a GPU: a thread per pixel follows its own chain from the last pass to the first. It is short: a chain goes on
// only where the walk has passed the partner before, so that no thread waits for another and nothing waits for the host.
#include "../glass.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

namespace cl_bench::glass {
namespace {

constexpr int kBlock = 256;

struct Walk {
  const float *right, *down;
  int64_t images, passes, rows, columns, height, width, delta;
};

__global__ void __launch_bounds__(kBlock) follow(const Walk walk, int64_t* __restrict__ origin) {
  const int64_t pixels = walk.height * walk.width, all = walk.images * pixels;
  for (int64_t k = blockIdx.x * static_cast<int64_t>(kBlock) + threadIdx.x; k < all; k += static_cast<int64_t>(gridDim.x) * kBlock) {
    const int64_t n = k / pixels;
    int64_t p = k % pixels;
    for (int64_t pass = walk.passes - 1; pass >= 0; --pass) {
      const int64_t base = (n * walk.passes + pass) * walk.rows * walk.columns;
      for (;;) {
        const int64_t i = walk.height - walk.delta - p / walk.width, j = walk.width - walk.delta - p % walk.width;
        if (i < 0 || i >= walk.rows || j < 0 || j >= walk.columns) {
          break;  // not walked: it holds what it held before this pass
        }
        const int64_t at = base + i * walk.columns + j;
        const int64_t partner = p + static_cast<int64_t>(walk.down[at]) * walk.width + static_cast<int64_t>(walk.right[at]);
        const bool passed = partner > p;
        p = partner;
        if (!passed) {
          break;  // the partner was still to come: its value before this pass
        }
      }
    }
    origin[k] = p;
  }
}

at::Tensor glass_origin(const at::Tensor& right, const at::Tensor& down, int64_t height, int64_t width, int64_t delta) {
  check_glass(right, down, height, width, delta);
  const c10::cuda::CUDAGuard guard(right.device());
  const at::Tensor r = right.to(at::kFloat).contiguous(), d = down.to(at::kFloat).contiguous();
  const at::Tensor origin = at::empty({r.size(0), height * width}, r.options().dtype(at::kLong));
  if (origin.numel() == 0) {
    return origin;
  }
  const Walk walk{r.const_data_ptr<float>(), d.const_data_ptr<float>(), r.size(0), r.size(1), r.size(2), r.size(3), height, width,
                  delta};
  const int64_t blocks = std::min<int64_t>((origin.numel() + kBlock - 1) / kBlock, 65535);
  follow<<<static_cast<unsigned>(blocks), kBlock, 0, at::cuda::getCurrentCUDAStream()>>>(walk, origin.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return origin;
}

}  // namespace
}  // namespace cl_bench::glass

TORCH_LIBRARY_IMPL(cl_bench, CUDA, m) {
  m.impl("glass_origin", &cl_bench::glass::glass_origin);
}
