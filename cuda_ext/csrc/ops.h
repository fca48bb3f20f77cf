// What the kernels of all devices share: argument checks and reading of tensors that overlap.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace cl_bench {

// Refuses what selective_ema_ cannot take (ValueError), in the words of check_selective_ema in reference.py.
void check_selective_ema(
    at::TensorList target,
    at::TensorList source,
    at::TensorList mask,
    double momentum,
    const std::optional<at::TensorList>& fill);

// `input`, or a copy of it where writing `target` element by element could change elements of `input` not yet read.
at::Tensor readable(const at::Tensor& input, const at::Tensor& target);

}  // namespace cl_bench
