#include "lists.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

namespace cl_bench {
namespace {

template <typename Lane>
struct Mean {
  using stored = typename Lane::stored;
  typename Lane::wide momentum, rest;
  stored operator()(stored target, stored source) const {
    return Lane::narrow(Lane::widen(target) * momentum + Lane::widen(source) * rest);
  }
  stored operator()(stored target, stored source, uint8_t mask) const {
    return mask != 0 ? target : (*this)(target, source);
  }
  stored operator()(stored target, stored source, uint8_t mask, stored fill) const {
    const stored mean = (*this)(target, source);
    return mask != 0 ? fill : mean;
  }
};

void selective_ema_(
    at::TensorList target,
    at::TensorList source,
    std::optional<at::TensorList> mask,
    double momentum,
    std::optional<at::TensorList> fill) {
  check_selective_ema(target, source, mask, momentum, fill);
  for (const at::ScalarType type : types_of(target)) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "selective_ema_", [&] {
      using lane = Lane<scalar_t>;
      using stored = typename lane::stored;
      const Mean<lane> mean{static_cast<typename lane::wide>(momentum), static_cast<typename lane::wide>(1.0 - momentum)};
      if (!mask.has_value()) {
        Stored<stored, stored>::run(type, target, {source}, mean);
      } else if (!fill.has_value()) {
        Stored<stored, stored, uint8_t>::run(type, target, {source, *mask}, mean);
      } else {
        Stored<stored, stored, uint8_t, stored>::run(type, target, {source, *mask, *fill}, mean);
      }
    });
  }
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CPU, m) {
  m.impl("selective_ema_", &cl_bench::selective_ema_);
}
