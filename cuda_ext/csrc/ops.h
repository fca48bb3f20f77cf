// What the kernels of all devices share: argument checks and reading of tensors that overlap.
#pragma once

#include <ATen/core/Tensor.h>

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

// `input`, or a copy of it where writing `target` element by element could change elements of `input` not yet read.
at::Tensor readable(const at::Tensor& input, const at::Tensor& target);

// Refuses what entropy_filter and its gradient cannot take (ValueError), in the words of _check in entropy.py.
void check_logits(const char* op, const at::Tensor& logits);

}  // namespace cl_bench
