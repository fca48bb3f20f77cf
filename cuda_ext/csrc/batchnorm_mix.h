// What batchnorm_mix refuses on every device, in the words of operators/batchnorm_mix.py, and how its input lies.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <utility>

namespace cl_bench {

inline const char* short_name(at::ScalarType type) {
  return type == at::kFloat ? "float32" : type == at::kDouble ? "float64" : type == at::kHalf ? "float16"
      : type == at::kBFloat16 ? "bfloat16" : c10::toString(type);
}

inline void check_mix(
    const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias) {
  TORCH_CHECK_VALUE(
      at::isFloatingType(x.scalar_type()) && x.dim() >= 2 && x.numel() > 0,
      "batchnorm_mix: x is ", x.sizes(), " of ", short_name(x.scalar_type()),
      "; give (images, channels, ...) of float32, float64, float16 or bfloat16 with at least one value.");
  const at::ScalarType wide = at::toOpMathType(x.scalar_type());
  const std::pair<const char*, const at::Tensor*> all[] = {
      {"mean", &mean}, {"var", &var}, {"weight", weight.has_value() ? &*weight : nullptr},
      {"bias", bias.has_value() ? &*bias : nullptr}};
  for (const auto& [name, value] : all) {
    TORCH_CHECK_VALUE(
        value == nullptr || (value->scalar_type() == wide && value->dim() == 1 && value->size(0) == x.size(1)),
        "batchnorm_mix: ", name, " is ", value->sizes(), " of ", short_name(value->scalar_type()), " where [", x.size(1),
        "] of ", short_name(wide), " is needed.");
  }
}

inline at::MemoryFormat format_of(const at::Tensor& x) {
  const bool last = x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast) && !x.is_contiguous();
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace cl_bench
