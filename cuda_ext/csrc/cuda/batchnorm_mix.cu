// batchnorm_mix on a GPU: a block per channel reads its planes for the mean, for the distances from it, and to normalise; of what
// fits into the L2 cache the later reads come from there. Images that lie channels-last go through torch's own kernels, which cut a
// channel among blocks.
#include "../batchnorm_mix.h"

#include <ATen/Dispatch.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/lerp.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/var_mean.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

namespace cl_bench::batchnorm {
namespace {

constexpr int kBlock = 512;

template <typename T>
struct Mix {
  const T *mean, *var, *weight, *bias;
  T *mixed_mean, *mixed_var;
  T alpha, eps, divisor;
};

template <typename T>
__device__ T sum_of_block(T value) {
  __shared__ T kept[kBlock / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  __syncthreads();  // the sum before is read
  if (threadIdx.x % 32 == 0) {
    kept[threadIdx.x / 32] = value;
  }
  __syncthreads();
  T all = 0;
  for (int k = 0; k < kBlock / 32; ++k) {
    all += kept[k];
  }
  return all;
}

template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kBlock) mix_planes(
    const scalar_t* __restrict__ x, scalar_t* __restrict__ out, const Mix<T> mix, int images, int channels, int64_t pixels) {
  const int c = blockIdx.x;
  const int64_t stride = channels * pixels, base = c * pixels, count = images * pixels;
  T sum = 0;
  for (int n = 0; n < images; ++n) {
    for (int64_t i = threadIdx.x; i < pixels; i += kBlock) {
      sum += static_cast<T>(x[n * stride + base + i]);
    }
  }
  const T own = sum_of_block(sum) / static_cast<T>(count);
  T squares = 0;
  for (int n = 0; n < images; ++n) {
    for (int64_t i = threadIdx.x; i < pixels; i += kBlock) {
      const T away = static_cast<T>(x[n * stride + base + i]) - own;
      squares += away * away;
    }
  }
  squares = sum_of_block(squares);
  const T m = mix.mean[c] + mix.alpha * (own - mix.mean[c]);
  const T v = mix.var[c] + mix.alpha * (squares / mix.divisor - mix.var[c]);
  if (threadIdx.x == 0) {
    mix.mixed_mean[c] = m;
    mix.mixed_var[c] = v;
  }
  const T scale = (mix.weight != nullptr ? mix.weight[c] : T(1)) / sqrt(v + mix.eps);
  const T shift = (mix.bias != nullptr ? mix.bias[c] : T(0)) - m * scale;
  for (int n = 0; n < images; ++n) {
    for (int64_t i = threadIdx.x; i < pixels; i += kBlock) {
      out[n * stride + base + i] = static_cast<scalar_t>(static_cast<T>(x[n * stride + base + i]) * scale + shift);
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batchnorm_mix(
    const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double alpha, double eps, bool unbiased) {
  check_mix(x, mean, var, weight, bias);
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t channels = x.size(1), count = x.numel() / channels;
  const at::MemoryFormat format = format_of(x);
  if (format == at::MemoryFormat::ChannelsLast || x.dim() == 2) {
    const at::Tensor wide = x.to(mean.scalar_type()).contiguous(format);
    std::vector<int64_t> dims{0};
    for (int64_t d = 2; d < x.dim(); ++d) {
      dims.push_back(d);
    }
    const auto [own_var, own] = at::var_mean(wide, dims, std::optional<at::Scalar>(unbiased && count > 1 ? 1 : 0), false);
    const at::Tensor m = at::lerp(mean, own, alpha), v = at::lerp(var, own_var, alpha);
    const at::Tensor out = std::get<0>(at::native_batch_norm(wide, weight, bias, m, v, false, 0.0, eps));
    return {out.to(x.scalar_type()).contiguous(format), m, v};
  }
  const at::Tensor in = x.contiguous(), out = at::empty_like(in), m = mean.contiguous(), v = var.contiguous();
  const at::Tensor mixed_mean = at::empty_like(m), mixed_var = at::empty_like(m);
  const at::Tensor w = weight.has_value() ? weight->contiguous() : at::Tensor();
  const at::Tensor b = bias.has_value() ? bias->contiguous() : at::Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "batchnorm_mix", [&] {
    using wide_t = at::opmath_type<scalar_t>;
    const Mix<wide_t> mix{
        m.const_data_ptr<wide_t>(), v.const_data_ptr<wide_t>(), w.defined() ? w.const_data_ptr<wide_t>() : nullptr,
        b.defined() ? b.const_data_ptr<wide_t>() : nullptr, mixed_mean.mutable_data_ptr<wide_t>(),
        mixed_var.mutable_data_ptr<wide_t>(), static_cast<wide_t>(alpha), static_cast<wide_t>(eps),
        static_cast<wide_t>(unbiased && count > 1 ? count - 1 : count)};
    mix_planes<scalar_t, wide_t><<<static_cast<unsigned>(channels), kBlock, 0, at::cuda::getCurrentCUDAStream()>>>(
        in.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(), mix, static_cast<int>(x.size(0)),
        static_cast<int>(channels), count / x.size(0));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {out, mixed_mean, mixed_var};
}

}  // namespace
}  // namespace cl_bench::batchnorm

TORCH_LIBRARY_IMPL(cl_bench, CUDA, m) {
  m.impl("batchnorm_mix", &cl_bench::batchnorm::batchnorm_mix);
}
