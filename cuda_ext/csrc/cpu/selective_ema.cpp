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

template <typename Lane>
void one_position(const at::Tensor& target, const at::Tensor& source, const at::Tensor* mask, const at::Tensor* fill,
                  double momentum) {
  using stored = typename Lane::stored;
  const Mean<Lane> mean{
      static_cast<typename Lane::wide>(momentum), static_cast<typename Lane::wide>(1.0 - momentum)};
  if (mask == nullptr) {
    Stored<stored, stored>::each(target, {source}, mean);
  } else if (fill == nullptr) {
    Stored<stored, stored, uint8_t>::each(target, {source, *mask}, mean);
  } else {
    Stored<stored, stored, uint8_t, stored>::each(target, {source, *mask, *fill}, mean);
  }
}

void selective_ema_(
    at::TensorList target,
    at::TensorList source,
    std::optional<at::TensorList> mask,
    double momentum,
    std::optional<at::TensorList> fill) {
  check_selective_ema(target, source, mask, momentum, fill);
  for (size_t i = 0; i < target.size(); ++i) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, target[i].scalar_type(), "selective_ema_", [&] {
      one_position<Lane<scalar_t>>(
          target[i], source[i], mask.has_value() ? &(*mask)[i] : nullptr, fill.has_value() ? &(*fill)[i] : nullptr, momentum);
    });
  }
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CPU, m) {
  m.impl("selective_ema_", &cl_bench::selective_ema_);
}
