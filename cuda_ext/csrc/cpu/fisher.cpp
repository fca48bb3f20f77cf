#include "lists.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

namespace cl_bench {
namespace {

void fisher_accumulate_(at::TensorList importance, at::TensorList gradient, double weight) {
  check_lists("fisher_accumulate_", {"importance", importance}, {{"gradient", gradient}});
  for (const at::ScalarType type : types_of(importance)) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "fisher_accumulate_", [&] {
      using lane = Lane<scalar_t>;
      using stored = typename lane::stored;
      const auto w = static_cast<typename lane::wide>(weight);
      Stored<stored, stored>::run(type, importance, {gradient}, [w](stored f, stored g) {
        const auto wide = lane::widen(g);
        return lane::narrow(lane::widen(f) + wide * wide * w);
      });
    });
  }
}

void anchored_penalty_grad_(
    at::TensorList gradient, at::TensorList importance, at::TensorList value, at::TensorList anchor, double weight) {
  check_lists(
      "anchored_penalty_grad_", {"gradient", gradient},
      {{"importance", importance}, {"value", value}, {"anchor", anchor}});
  for (const at::ScalarType type : types_of(gradient)) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "anchored_penalty_grad_", [&] {
      using lane = Lane<scalar_t>;
      using stored = typename lane::stored;
      const auto w = static_cast<typename lane::wide>(2.0 * weight);
      Stored<stored, stored, stored, stored>::run(
          type, gradient, {importance, value, anchor}, [w](stored g, stored f, stored p, stored a) {
            const auto pull = lane::widen(f) * (lane::widen(p) - lane::widen(a)) * w;
            return lane::narrow(lane::widen(g) + pull);
          });
    });
  }
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CPU, m) {
  m.impl("fisher_accumulate_", &cl_bench::fisher_accumulate_);
  m.impl("anchored_penalty_grad_", &cl_bench::anchored_penalty_grad_);
}
