// selective_ema_ on the CPU: one pass over memory. TensorIterator merges dimensions, walks any strides and runs blocks of
// elements on torch's own threads (at::parallel_for); positions of the lists follow one another, as in the reference.
#include "../ops.h"
#include "../lanes.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorIterator.h>
#include <torch/library.h>

namespace cl_bench {
namespace {

// `mask` is read as bytes: compilers leave a loop that reads bool one element at a time.
template <typename Lane>
inline typename Lane::stored element(
    typename Lane::stored target,
    typename Lane::stored source,
    uint8_t mask,
    typename Lane::stored keep,
    typename Lane::wide momentum,
    typename Lane::wide rest) {
  const typename Lane::stored mean = Lane::narrow(Lane::widen(target) * momentum + Lane::widen(source) * rest);
  return mask != 0 ? keep : mean;
}

template <typename Lane>
void run(at::TensorIterator& iterator, double momentum) {
  using stored = typename Lane::stored;
  const auto m = static_cast<typename Lane::wide>(momentum);
  const auto rest = static_cast<typename Lane::wide>(1.0 - momentum);
  iterator.for_each([m, rest](char** data, const int64_t* strides, int64_t n) {
    constexpr int64_t size = sizeof(stored);
    auto* target = reinterpret_cast<stored*>(data[0]);
    const auto* source = reinterpret_cast<const stored*>(data[1]);
    const auto* mask = reinterpret_cast<const uint8_t*>(data[2]);
    const auto* keep = reinterpret_cast<const stored*>(data[3]);
    if (strides[0] == size && strides[1] == size && strides[2] == 1 && strides[3] == size) {
      CL_BENCH_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        target[i] = element<Lane>(target[i], source[i], mask[i], keep[i], m, rest);
      }
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      auto* t = reinterpret_cast<stored*>(data[0] + i * strides[0]);
      *t = element<Lane>(
          *t,
          *reinterpret_cast<const stored*>(data[1] + i * strides[1]),
          mask[i * strides[2]],
          *reinterpret_cast<const stored*>(data[3] + i * strides[3]),
          m, rest);
    }
  });
}

void one_position(
    const at::Tensor& target,
    const at::Tensor& source,
    const at::Tensor& mask,
    const at::Tensor& keep,
    double momentum) {
  const at::Tensor source_now = readable(source, target);
  const at::Tensor keep_now = readable(keep, target);
  auto iterator = at::TensorIteratorConfig()
                      .add_output(target)
                      .add_const_input(source_now)
                      .add_const_input(mask)
                      .add_const_input(keep_now)
                      .resize_outputs(false)
                      .check_all_same_dtype(false)
                      .build();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, target.scalar_type(), "selective_ema_", [&] {
    run<Lane<scalar_t>>(iterator, momentum);
  });
}

void selective_ema_(
    at::TensorList target,
    at::TensorList source,
    at::TensorList mask,
    double momentum,
    std::optional<at::TensorList> fill) {
  check_selective_ema(target, source, mask, momentum, fill);
  for (size_t i = 0; i < target.size(); ++i) {
    one_position(target[i], source[i], mask[i], fill.has_value() ? (*fill)[i] : target[i], momentum);
  }
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CPU, m) {
  m.impl("selective_ema_", &cl_bench::selective_ema_);
}
