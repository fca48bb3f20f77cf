// entropy_filter on a GPU: one warp per row up to 1,024 classes, else one block per row; the row is read once, and the sums
// that belong to its largest logit so far are carried along (online softmax).
#include "../ops.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

namespace cl_bench {
namespace {

constexpr int kBlock = 256;
constexpr int64_t kWarpClasses = 1024;

// Of some logits z: the largest m, s = sum exp(z - m), t = sum exp(z - m) (z - m). No logits: m = -inf, s = t = 0.
template <typename wide>
struct Sums {
  wide m = -std::numeric_limits<wide>::infinity();
  wide s = 0;
  wide t = 0;

  __device__ __forceinline__ void take(wide z) {
    if (z == -std::numeric_limits<wide>::infinity()) {
      return;  // a probability of 0
    }
    merge(Sums{z, static_cast<wide>(z - z + 1), static_cast<wide>(0)});  // z - z: NaN and infinities stay visible
  }

  __device__ __forceinline__ void merge(const Sums& other) {
    if (other.s == 0) {
      return;
    }
    if (s == 0) {
      *this = other;
      return;
    }
    const wide top = m > other.m ? m : other.m;
    const wide a = exp(m - top);
    const wide b = exp(other.m - top);
    t = (t + s * (m - top)) * a + (other.t + other.s * (other.m - top)) * b;
    s = s * a + other.s * b;
    m = top;
  }
};

template <typename wide>
__device__ __forceinline__ Sums<wide> across_warp(Sums<wide> sums) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    sums.merge(Sums<wide>{
        __shfl_xor_sync(0xffffffffu, sums.m, offset),
        __shfl_xor_sync(0xffffffffu, sums.s, offset),
        __shfl_xor_sync(0xffffffffu, sums.t, offset)});
  }
  return sums;
}

template <typename scalar_t, typename wide, bool warp_per_row>
__global__ void __launch_bounds__(kBlock) forward_kernel(
    const scalar_t* logits, int64_t stride, int64_t rows, int64_t classes, wide margin, wide* entropy, wide* confidence,
    bool* reliable, wide* logsumexp) {
  const int64_t row = warp_per_row ? (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) / 32 : blockIdx.x;
  if (row >= rows) {
    return;
  }
  const int lane = warp_per_row ? threadIdx.x % 32 : threadIdx.x;
  const int step = warp_per_row ? 32 : kBlock;
  Sums<wide> sums;
  for (int64_t c = lane; c < classes; c += step) {
    sums.take(static_cast<wide>(logits[row * stride + c]));
  }
  sums = across_warp(sums);
  if constexpr (!warp_per_row) {
    __shared__ Sums<wide> parts[kBlock / 32];
    if (threadIdx.x % 32 == 0) {
      parts[threadIdx.x / 32] = sums;
    }
    __syncthreads();
    sums = Sums<wide>{};
    for (int k = 0; k < kBlock / 32; ++k) {
      sums.merge(parts[k]);
    }
  }
  if (lane == 0) {
    const wide ln = log(sums.s);
    const wide h = ln - sums.t / sums.s;
    entropy[row] = h;
    confidence[row] = sums.s == 0 ? std::numeric_limits<wide>::quiet_NaN() : 1 / sums.s;
    reliable[row] = h < margin;
    logsumexp[row] = isinf(sums.m) ? sums.m : sums.m + ln;
  }
}

template <typename scalar_t, typename wide>
__global__ void __launch_bounds__(kBlock) backward_kernel(
    const scalar_t* logits, int64_t stride, int64_t classes, const wide* entropy, const wide* logsumexp, const wide* upstream,
    int64_t upstream_stride, scalar_t* out) {
  const int64_t row = blockIdx.x;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kBlock + threadIdx.x;
  if (c >= classes) {
    return;
  }
  const wide log_p = static_cast<wide>(logits[row * stride + c]) - logsumexp[row];
  const wide p = exp(log_p);
  const wide slope = p == 0 ? static_cast<wide>(0) : p * (log_p + entropy[row]);
  out[row * classes + c] = static_cast<scalar_t>(slope * -upstream[row * upstream_stride]);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> entropy_filter(const at::Tensor& logits, double margin) {
  check_logits("entropy_filter", logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor z = logits.stride(1) == 1 ? logits : logits.contiguous();
  const int64_t rows = z.size(0), classes = z.size(1);
  const auto wide_type = at::toOpMathType(z.scalar_type());
  const at::Tensor entropy = at::empty({rows}, z.options().dtype(wide_type));
  const at::Tensor confidence = at::empty_like(entropy), logsumexp = at::empty_like(entropy);
  const at::Tensor reliable = at::empty({rows}, z.options().dtype(at::kBool));
  if (rows == 0) {
    return {entropy, confidence, reliable, logsumexp};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "entropy_filter", [&] {
    using wide = at::opmath_type<scalar_t>;
    const bool by_warp = classes <= kWarpClasses;
    const auto kernel = by_warp ? forward_kernel<scalar_t, wide, true> : forward_kernel<scalar_t, wide, false>;
    const int64_t blocks = by_warp ? (rows * 32 + kBlock - 1) / kBlock : rows;
    kernel<<<blocks, kBlock, 0, at::cuda::getCurrentCUDAStream()>>>(
        z.const_data_ptr<scalar_t>(), z.stride(0), rows, classes, static_cast<wide>(margin),
        entropy.mutable_data_ptr<wide>(), confidence.mutable_data_ptr<wide>(), reliable.mutable_data_ptr<bool>(),
        logsumexp.mutable_data_ptr<wide>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {entropy, confidence, reliable, logsumexp};
}

at::Tensor entropy_filter_grad(
    const at::Tensor& logits, const at::Tensor& entropy, const at::Tensor& logsumexp, const at::Tensor& upstream) {
  check_logits("entropy_filter_grad", logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor z = logits.stride(1) == 1 ? logits : logits.contiguous();
  const int64_t rows = z.size(0), classes = z.size(1);
  const at::Tensor out = at::empty({rows, classes}, z.options());
  if (rows == 0) {
    return out;
  }
  const at::Tensor h = entropy.contiguous(), lse = logsumexp.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "entropy_filter_grad", [&] {
    using wide = at::opmath_type<scalar_t>;
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((classes + kBlock - 1) / kBlock));
    backward_kernel<scalar_t, wide><<<grid, kBlock, 0, at::cuda::getCurrentCUDAStream()>>>(
        z.const_data_ptr<scalar_t>(), z.stride(0), classes, h.const_data_ptr<wide>(), lse.const_data_ptr<wide>(),
        upstream.const_data_ptr<wide>(), upstream.stride(0), out.mutable_data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CUDA, m) {
  m.impl("entropy_filter", &cl_bench::entropy_filter);
  m.impl("entropy_filter_grad", &cl_bench::entropy_filter_grad);
}
