// What the kernels of all devices share: argument checks, and which tensors can be walked as plain memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>
#include <vector>

namespace cl_bench {

// A list of tensors with the name of its argument; `dtype` where it is not the first list's.
struct Named {
  const char* name;
  at::TensorList tensors;
  std::optional<at::ScalarType> dtype = std::nullopt;
};

// Refuses lists that do not fit `first` position by position (ValueError), in the words of check_lists in declaration.py.
void check_lists(const char* op, const Named& first, const std::vector<Named>& others);

// Refuses what selective_ema_ cannot take, in the words of its definition.
void check_selective_ema(
    at::TensorList target,
    at::TensorList source,
    const std::optional<at::TensorList>& mask,
    double momentum,
    const std::optional<at::TensorList>& fill);

// The dtypes of a list, each once.
c10::SmallVector<at::ScalarType, 4> types_of(at::TensorList tensors);

// Whether writing `target` element by element leaves every element of `input` as it is until it is read.
bool safe_beside(const at::Tensor& input, const at::Tensor& target);

// Whether element k of the memory of `input` belongs to element k of the memory of `target`, which is dense, and is safe.
inline bool alongside(const at::Tensor& input, const at::Tensor& target) {
  return (input.strides() == target.strides() || (input.is_contiguous() && target.is_contiguous())) &&
      (!input.is_alias_of(target) || safe_beside(input, target));
}

// Refuses what entropy_filter and its gradient cannot take (ValueError), in the words of _check in entropy.py.
void check_logits(const char* op, const at::Tensor& logits);

}  // namespace cl_bench
