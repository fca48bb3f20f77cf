#include "ops.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
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

bool floating(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

}  // namespace

void check_lists(const char* op, const Named& first, const std::vector<Named>& others) {
  const at::TensorList target = first.tensors;
  for (const Named& other : others) {
    TORCH_CHECK_VALUE(
        other.tensors.size() == target.size(),
        op, ": ", first.name, " holds ", target.size(), " tensors but ", other.name, " holds ", other.tensors.size(),
        "; give lists of one length.");
  }
  for (size_t i = 0; i < target.size(); ++i) {
    const at::Tensor& t = target[i];
    TORCH_CHECK_VALUE(
        floating(t.scalar_type()),
        op, ": ", first.name, "[", i, "] has dtype ", dtype_name(t.scalar_type()),
        "; supported are float32, float64, float16 and bfloat16.");
    TORCH_CHECK_VALUE(
        t.device() == target[0].device(),
        op, ": ", first.name, "[", i, "] is on ", t.device(), " but ", first.name, "[0] is on ", target[0].device(),
        "; put all tensors on one device.");
    for (const Named& other : others) {
      const at::Tensor& o = other.tensors[i];
      const at::ScalarType type = other.dtype.value_or(t.scalar_type());
      TORCH_CHECK_VALUE(
          o.scalar_type() == type,
          op, ": ", other.name, "[", i, "] has dtype ", dtype_name(o.scalar_type()), " where ", dtype_name(type),
          " is needed.");
      TORCH_CHECK_VALUE(
          o.sizes() == t.sizes(),
          op, ": ", other.name, "[", i, "] has shape ", o.sizes(), " but ", first.name, "[", i, "] has shape ", t.sizes(),
          ".");
      TORCH_CHECK_VALUE(
          o.device() == t.device(),
          op, ": ", other.name, "[", i, "] is on ", o.device(), " but ", first.name, "[", i, "] is on ", t.device(),
          "; put all tensors on one device.");
    }
  }
}

void check_selective_ema(
    at::TensorList target,
    at::TensorList source,
    const std::optional<at::TensorList>& mask,
    double momentum,
    const std::optional<at::TensorList>& fill) {
  std::vector<Named> others{{"source", source}};
  if (mask.has_value()) {
    others.push_back({"mask", *mask, at::kBool});
  }
  if (fill.has_value()) {
    others.push_back({"fill", *fill});
  }
  check_lists("selective_ema_", {"target", target}, others);
  TORCH_CHECK_VALUE(
      momentum >= 0.0 && momentum <= 1.0, "selective_ema_: momentum is ", momentum, "; give a number from 0 to 1.");
  TORCH_CHECK_VALUE(
      mask.has_value() || !fill.has_value(),
      "selective_ema_: fill is given without a mask, which says where to fill.");
}

c10::SmallVector<at::ScalarType, 4> types_of(at::TensorList tensors) {
  c10::SmallVector<at::ScalarType, 4> types;
  for (const at::Tensor& t : tensors) {
    if (std::find(types.begin(), types.end(), t.scalar_type()) == types.end()) {
      types.push_back(t.scalar_type());
    }
  }
  return types;
}

bool safe_beside(const at::Tensor& input, const at::Tensor& target) {
  const bool same_elements = input.const_data_ptr() == target.const_data_ptr() && input.strides() == target.strides();
  return same_elements || !input.is_alias_of(target) ||
      at::get_overlap_status(input, target) == at::MemOverlapStatus::No;
}

void check_logits(const char* op, const at::Tensor& logits) {
  TORCH_CHECK_VALUE(
      floating(logits.scalar_type()),
      op, ": logits have dtype ", dtype_name(logits.scalar_type()),
      "; supported are float32, float64, float16 and bfloat16.");
  TORCH_CHECK_VALUE(
      logits.dim() == 2 && logits.size(1) > 0,
      op, ": logits have shape ", logits.sizes(), "; give (images, classes) with at least one class.");
}

}  // namespace cl_bench
