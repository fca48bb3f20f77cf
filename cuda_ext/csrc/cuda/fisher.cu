#include "lists.cuh"

#include <ATen/Dispatch.h>
#include <torch/library.h>

namespace cl_bench {
namespace {

template <typename scalar_t>
struct Accumulate {
  using wide = at::opmath_type<scalar_t>;
  wide weight;
  __device__ __forceinline__ scalar_t operator()(scalar_t importance, scalar_t gradient) const {
    const wide g = static_cast<wide>(gradient);
    return static_cast<scalar_t>(add(static_cast<wide>(importance), mul(mul(g, g), weight)));
  }
};

template <typename scalar_t>
struct Pull {
  using wide = at::opmath_type<scalar_t>;
  wide twice;
  __device__ __forceinline__ scalar_t
  operator()(scalar_t gradient, scalar_t importance, scalar_t value, scalar_t anchor) const {
    const wide away = add(static_cast<wide>(value), -static_cast<wide>(anchor));
    const wide pull = mul(mul(static_cast<wide>(importance), away), twice);
    return static_cast<scalar_t>(add(static_cast<wide>(gradient), pull));
  }
};

void fisher_accumulate_(at::TensorList importance, at::TensorList gradient, double weight) {
  check_lists("fisher_accumulate_", {"importance", importance}, {{"gradient", gradient}});
  if (importance.empty()) {
    return;
  }
  const c10::cuda::CUDAGuard guard(importance[0].device());
  for (const at::ScalarType type : types_of(importance)) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "fisher_accumulate_", [&] {
      const Accumulate<scalar_t> accumulate{static_cast<at::opmath_type<scalar_t>>(weight)};
      run_lists<scalar_t, scalar_t>(type, importance, {gradient}, accumulate);
    });
  }
}

void anchored_penalty_grad_(
    at::TensorList gradient, at::TensorList importance, at::TensorList value, at::TensorList anchor, double weight) {
  check_lists(
      "anchored_penalty_grad_", {"gradient", gradient},
      {{"importance", importance}, {"value", value}, {"anchor", anchor}});
  if (gradient.empty()) {
    return;
  }
  const c10::cuda::CUDAGuard guard(gradient[0].device());
  for (const at::ScalarType type : types_of(gradient)) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "anchored_penalty_grad_", [&] {
      const Pull<scalar_t> pull{static_cast<at::opmath_type<scalar_t>>(2.0 * weight)};
      run_lists<scalar_t, scalar_t, scalar_t, scalar_t>(type, gradient, {importance, value, anchor}, pull);
    });
  }
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CUDA, m) {
  m.impl("fisher_accumulate_", &cl_bench::fisher_accumulate_);
  m.impl("anchored_penalty_grad_", &cl_bench::anchored_penalty_grad_);
}
