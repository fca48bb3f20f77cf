// entropy_filter on a GPU: up to 1,024 classes a warp holds a row in its registers, so that it is read once and each of its
// exponentials is taken once; above, a block reads its row twice. Reads and writes are 16 bytes wide where rows allow it.
#include "../ops.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>

namespace cl_bench::entropies {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

template <typename wide>
constexpr wide kLowest = -std::numeric_limits<wide>::infinity();

template <typename wide>
struct Answers {
  wide margin;
  wide *entropy, *confidence, *logsumexp;
  bool* reliable;

  // From the largest logit m, s = sum exp(z - m) and t = sum exp(z - m) (z - m).
  __device__ __forceinline__ void set(int64_t row, wide m, wide s, wide t) const {
    const wide ln = log(s);
    const wide h = ln - t / s;
    entropy[row] = h;
    confidence[row] = 1 / s;
    reliable[row] = h < margin;
    logsumexp[row] = isinf(m) ? m : m + ln;
  }
};

template <typename wide>
__device__ __forceinline__ wide larger(wide a, wide b) {
  return a > b || isnan(a) ? a : b;  // NaN passes on
}

template <typename wide>
__device__ __forceinline__ void take(wide z, wide m, wide& s, wide& t) {
  const wide away = z - m;
  const wide e = exp(away);
  s += e;
  t += e == 0 ? static_cast<wide>(0) : away * e;  // x ln x -> 0
}

template <typename wide>
__device__ __forceinline__ wide largest_of_warp(wide m) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    m = larger(m, __shfl_xor_sync(0xffffffffu, m, offset));
  }
  return m;
}

template <typename wide>
__device__ __forceinline__ wide sum_of_warp(wide x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  return x;
}

// A warp per row of at most 32 * packs * N classes, read N at a time (N > 1: rows are aligned and whole packs).
template <typename scalar_t, typename wide, int N, int packs>
__global__ void __launch_bounds__(kBlock)
    warp_kernel(const scalar_t* logits, int64_t stride, int64_t rows, int classes, Answers<wide> answers) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows) {
    return;
  }
  const int lane = threadIdx.x % 32;
  const auto* data = reinterpret_cast<const Pack<scalar_t, N>*>(logits + row * stride);
  wide z[packs * N];
  wide m = kLowest<wide>;
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int p = k * 32 + lane;
    Pack<scalar_t, N> read;
    const bool there = p * N < classes;
    if (there) {
      read = data[p];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      z[k * N + j] = there ? static_cast<wide>(read.value[j]) : kLowest<wide>;
      m = larger(m, z[k * N + j]);
    }
  }
  m = largest_of_warp(m);
  wide s = 0;
  wide t = 0;
#pragma unroll
  for (int k = 0; k < packs * N; ++k) {
    take(z[k], m, s, t);
  }
  s = sum_of_warp(s);
  t = sum_of_warp(t);
  if (lane == 0) {
    answers.set(row, m, s, t);
  }
}

template <typename scalar_t, typename wide>
__global__ void __launch_bounds__(kBlock)
    block_kernel(const scalar_t* logits, int64_t stride, int64_t classes, Answers<wide> answers) {
  __shared__ wide largest[kWarps], sums[kWarps], products[kWarps];
  const int64_t row = blockIdx.x;
  const scalar_t* data = logits + row * stride;
  const int warp = threadIdx.x / 32;
  const bool first = threadIdx.x % 32 == 0;
  wide m = kLowest<wide>;
  for (int64_t c = threadIdx.x; c < classes; c += kBlock) {
    m = larger(m, static_cast<wide>(data[c]));
  }
  m = largest_of_warp(m);
  if (first) {
    largest[warp] = m;
  }
  __syncthreads();
  m = largest[0];
  for (int k = 1; k < kWarps; ++k) {
    m = larger(m, largest[k]);
  }
  wide s = 0;
  wide t = 0;
  for (int64_t c = threadIdx.x; c < classes; c += kBlock) {
    take(static_cast<wide>(data[c]), m, s, t);
  }
  s = sum_of_warp(s);
  t = sum_of_warp(t);
  if (first) {
    sums[warp] = s;
    products[warp] = t;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int k = 1; k < kWarps; ++k) {
      s += sums[k];
      t += products[k];
    }
    answers.set(row, m, s, t);
  }
}

// One thread per pack of N logits; `packs` in a row.
template <typename scalar_t, typename wide, int N>
__global__ void __launch_bounds__(kBlock) backward_kernel(
    const scalar_t* logits, int64_t stride, int64_t packs, int64_t all, const wide* entropy, const wide* logsumexp,
    const wide* upstream, int64_t upstream_stride, scalar_t* out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (at >= all) {
    return;
  }
  const int64_t row = all <= std::numeric_limits<int32_t>::max()  // a division of 32 bits where that is enough
      ? static_cast<int64_t>(static_cast<uint32_t>(at) / static_cast<uint32_t>(packs))
      : at / packs;
  const Pack<scalar_t, N> z = reinterpret_cast<const Pack<scalar_t, N>*>(logits + row * stride)[at - row * packs];
  const wide h = entropy[row];
  const wide lse = logsumexp[row];
  const wide scale = -upstream[row * upstream_stride];
  Pack<scalar_t, N> result;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const wide log_p = static_cast<wide>(z.value[j]) - lse;
    const wide p = exp(log_p);
    const wide slope = p == 0 ? static_cast<wide>(0) : p * (log_p + h);
    result.value[j] = static_cast<scalar_t>(slope * scale);
  }
  reinterpret_cast<Pack<scalar_t, N>*>(out)[at] = result;
}

// Whether all rows can be read N logits at a time.
template <typename scalar_t, int N>
bool packed(const at::Tensor& z) {
  return z.size(1) % N == 0 && (z.size(0) == 1 || z.stride(0) % N == 0) &&
      reinterpret_cast<uintptr_t>(z.const_data_ptr()) % (sizeof(scalar_t) * N) == 0;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> entropy_filter(const at::Tensor& logits, double margin) {
  check_logits("entropy_filter", logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor z = logits.stride(1) == 1 ? logits : logits.contiguous();
  const int64_t rows = z.size(0), classes = z.size(1);
  const auto wide_type = at::toOpMathType(z.scalar_type());
  const auto options = z.options().dtype(wide_type);
  const at::Tensor entropy = at::empty({rows}, options), confidence = at::empty({rows}, options);
  const at::Tensor logsumexp = at::empty({rows}, options);
  const at::Tensor reliable = at::empty({rows}, z.options().dtype(at::kBool));
  if (rows == 0) {
    return {entropy, confidence, reliable, logsumexp};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "entropy_filter", [&] {
    using wide = at::opmath_type<scalar_t>;
    constexpr int N = 16 / sizeof(scalar_t);
    const auto* data = z.const_data_ptr<scalar_t>();
    const Answers<wide> answers{
        static_cast<wide>(margin), entropy.mutable_data_ptr<wide>(), confidence.mutable_data_ptr<wide>(),
        logsumexp.mutable_data_ptr<wide>(), reliable.mutable_data_ptr<bool>()};
    const auto stream = at::cuda::getCurrentCUDAStream();
    const int64_t by_warp = (rows + kWarps - 1) / kWarps;
    const int columns = static_cast<int>(std::min<int64_t>(classes, 1025));
    if (classes > 1024) {
      block_kernel<scalar_t, wide><<<rows, kBlock, 0, stream>>>(data, z.stride(0), classes, answers);
    } else if (classes <= 128) {
      warp_kernel<scalar_t, wide, 1, 4><<<by_warp, kBlock, 0, stream>>>(data, z.stride(0), rows, columns, answers);
    } else if (packed<scalar_t, N>(z)) {
      warp_kernel<scalar_t, wide, N, 32 / N><<<by_warp, kBlock, 0, stream>>>(data, z.stride(0), rows, columns, answers);
    } else {
      warp_kernel<scalar_t, wide, 1, 32><<<by_warp, kBlock, 0, stream>>>(data, z.stride(0), rows, columns, answers);
    }
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
    constexpr int N = 16 / sizeof(scalar_t);
    const bool wide_reads = packed<scalar_t, N>(z);
    const auto kernel = wide_reads ? backward_kernel<scalar_t, wide, N> : backward_kernel<scalar_t, wide, 1>;
    const int64_t packs = wide_reads ? classes / N : classes;
    kernel<<<(rows * packs + kBlock - 1) / kBlock, kBlock, 0, at::cuda::getCurrentCUDAStream()>>>(
        z.const_data_ptr<scalar_t>(), z.stride(0), packs, rows * packs, h.const_data_ptr<wide>(), lse.const_data_ptr<wide>(),
        upstream.const_data_ptr<wide>(), upstream.stride(0), out.mutable_data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

}  // namespace
}  // namespace cl_bench::entropies

TORCH_LIBRARY_IMPL(cl_bench, CUDA, m) {
  m.impl("entropy_filter", &cl_bench::entropies::entropy_filter);
  m.impl("entropy_filter_grad", &cl_bench::entropies::entropy_filter_grad);
}
