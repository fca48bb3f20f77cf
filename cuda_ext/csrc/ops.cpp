#include "ops.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <string>

namespace cl_bench {

namespace {

std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kBool:
      return "bool";
    default:
      return c10::toString(type);
  }
}

void check_length(const char* name, at::TensorList tensors, at::TensorList target) {
  TORCH_CHECK_VALUE(
      tensors.size() == target.size(),
      "selective_ema_: target holds ", target.size(), " tensors but ", name, " holds ", tensors.size(),
      "; give lists of one length.");
}

void check_position(const char* name, const at::Tensor& other, const at::Tensor& target, at::ScalarType type, size_t i) {
  TORCH_CHECK_VALUE(
      other.scalar_type() == type,
      "selective_ema_: ", name, "[", i, "] has dtype ", dtype_name(other.scalar_type()), " where ", dtype_name(type),
      " is needed.");
  TORCH_CHECK_VALUE(
      other.sizes() == target.sizes(),
      "selective_ema_: ", name, "[", i, "] has shape ", other.sizes(), " but target[", i, "] has shape ", target.sizes(),
      ".");
  TORCH_CHECK_VALUE(
      other.device() == target.device(),
      "selective_ema_: ", name, "[", i, "] is on ", other.device(), " but target[", i, "] is on ", target.device(),
      "; put all tensors on one device.");
}

}  // namespace

void check_selective_ema(
    at::TensorList target,
    at::TensorList source,
    at::TensorList mask,
    double momentum,
    const std::optional<at::TensorList>& fill) {
  check_length("source", source, target);
  check_length("mask", mask, target);
  if (fill.has_value()) {
    check_length("fill", *fill, target);
  }
  TORCH_CHECK_VALUE(
      momentum >= 0.0 && momentum <= 1.0, "selective_ema_: momentum is ", momentum, "; give a number from 0 to 1.");
  for (size_t i = 0; i < target.size(); ++i) {
    const at::Tensor& t = target[i];
    const at::ScalarType type = t.scalar_type();
    TORCH_CHECK_VALUE(
        type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16,
        "selective_ema_: target[", i, "] has dtype ", dtype_name(type),
        "; supported are float32, float64, float16 and bfloat16.");
    TORCH_CHECK_VALUE(
        t.device() == target[0].device(),
        "selective_ema_: target[", i, "] is on ", t.device(), " but target[0] is on ", target[0].device(),
        "; put all tensors on one device.");
    check_position("source", source[i], t, type, i);
    check_position("mask", mask[i], t, at::kBool, i);
    if (fill.has_value()) {
      check_position("fill", (*fill)[i], t, type, i);
    }
  }
}

at::Tensor readable(const at::Tensor& input, const at::Tensor& target) {
  const bool same_elements = input.data_ptr() == target.data_ptr() && input.strides() == target.strides();
  if (!input.is_alias_of(target) || same_elements ||
      at::get_overlap_status(input, target) == at::MemOverlapStatus::No) {
    return input;
  }
  return input.clone();
}

}  // namespace cl_bench
