#include "lists.cuh"

#include <ATen/Dispatch.h>
#include <torch/library.h>

namespace cl_bench {
namespace {

template <typename scalar_t>
struct Mean {
  using wide = at::opmath_type<scalar_t>;
  wide momentum, rest;
  __device__ __forceinline__ scalar_t operator()(scalar_t target, scalar_t source) const {
    return static_cast<scalar_t>(add(mul(static_cast<wide>(target), momentum), mul(static_cast<wide>(source), rest)));
  }
  __device__ __forceinline__ scalar_t operator()(scalar_t target, scalar_t source, bool mask) const {
    return mask ? target : (*this)(target, source);
  }
  __device__ __forceinline__ scalar_t operator()(scalar_t target, scalar_t source, bool mask, scalar_t fill) const {
    return mask ? fill : (*this)(target, source);
  }
};

void selective_ema_(
    at::TensorList target,
    at::TensorList source,
    std::optional<at::TensorList> mask,
    double momentum,
    std::optional<at::TensorList> fill) {
  check_selective_ema(target, source, mask, momentum, fill);
  if (target.empty()) {
    return;
  }
  const c10::cuda::CUDAGuard guard(target[0].device());
  for (const at::ScalarType type : types_of(target)) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "selective_ema_", [&] {
      using wide = at::opmath_type<scalar_t>;
      const Mean<scalar_t> mean{static_cast<wide>(momentum), static_cast<wide>(1.0 - momentum)};
      if (!mask.has_value()) {
        run_lists<scalar_t, scalar_t>(type, target, {source}, mean);
      } else if (!fill.has_value()) {
        run_lists<scalar_t, scalar_t, bool>(type, target, {source, *mask}, mean);
      } else {
        run_lists<scalar_t, scalar_t, bool, scalar_t>(type, target, {source, *mask, *fill}, mean);
      }
    });
  }
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CUDA, m) {
  m.impl("selective_ema_", &cl_bench::selective_ema_);
}
