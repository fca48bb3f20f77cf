// Element-wise work on lists of tensors: one launch for up to kTensors tensors of a dtype, whatever their sizes. Every block
// finds its tensor in a table that travels with the launch, so nothing is copied to the device, nothing waits, and a CUDA
// graph can record it.
#pragma once

#include "../ops.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <array>
#include <limits>
#include <utility>
#include <vector>

namespace cl_bench {

constexpr int kThreads = 256;
constexpr int kChunkBytes = 16384;  // that a block writes: four packs a thread, some waves of blocks for a network's parameters

// Rounded one by one, as in the definitions.
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }

// The tensors of a launch: `slots` pointers each. The table stays below the 4 KiB of arguments that every driver takes.
template <int slots>
struct Table {
  static constexpr int kTensors = 3900 / (8 * slots + 12);
  void* data[kTensors][slots];
  int64_t numel[kTensors];
  uint32_t first_chunk[kTensors + 1];
  int count;
};

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// N elements of each slot, in registers.
template <int N, typename... S>
struct Packs {
  __device__ __forceinline__ void load(void* const*, int64_t, int) {}
  template <typename F, typename... A>
  __device__ __forceinline__ auto apply(const F& f, int, A... a) const {
    return f(a...);
  }
};

template <int N, typename S, typename... R>
struct Packs<N, S, R...> {
  Pack<S, N> head;
  Packs<N, R...> tail;
  __device__ __forceinline__ void load(void* const* data, int64_t begin, int pack) {
    head = reinterpret_cast<const Pack<S, N>*>(static_cast<const S*>(*data) + begin)[pack];
    tail.load(data + 1, begin, pack);
  }
  template <typename F, typename... A>
  __device__ __forceinline__ auto apply(const F& f, int j, A... a) const {
    return tail.apply(f, j, a..., head.value[j]);
  }
};

template <int N, typename... S>
__device__ __forceinline__ bool aligned(void* const* data) {
  int slot = 0;
  bool all = true;
  ((all = all && reinterpret_cast<uintptr_t>(data[slot++]) % (sizeof(S) * N) == 0), ...);
  return all;
}

// Out[e] <- f(out[e], in[e]...)
template <typename F, typename Out, typename... In>
__global__ void __launch_bounds__(kThreads) lists_kernel(const __grid_constant__ Table<1 + sizeof...(In)> table, const F f) {
  constexpr int N = 16 / sizeof(Out);  // 16-byte accesses
  constexpr int kUnroll = sizeof...(In) < 2 ? 4 : 2;  // packs of a slot that a thread has in flight
  constexpr int64_t kChunk = kChunkBytes / sizeof(Out);  // elements of a block, whole packs: chunks keep the alignment
  int low = 0;
  int high = table.count;  // first_chunk[low] <= blockIdx.x < first_chunk[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_chunk[middle] <= blockIdx.x ? low : high) = middle;
  }
  void* const* data = table.data[low];
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first_chunk[low]) * kChunk;
  const int count = static_cast<int>(min(kChunk, table.numel[low] - begin));
  Out* out = static_cast<Out*>(data[0]) + begin;

  int done = 0;
  if (aligned<N, Out, In...>(data)) {
    const int packs = count / N;
    for (int start = threadIdx.x; start < packs; start += kThreads * kUnroll) {
      Packs<N, Out, In...> values[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int p = start + u * kThreads;
        if (p < packs) {
          values[u].load(data, begin, p);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int p = start + u * kThreads;
        if (p < packs) {
          Pack<Out, N> result;
#pragma unroll
          for (int j = 0; j < N; ++j) {
            result.value[j] = values[u].apply(f, j);
          }
          reinterpret_cast<Pack<Out, N>*>(out)[p] = result;
        }
      }
    }
    done = packs * N;
  }
  for (int i = done + threadIdx.x; i < count; i += kThreads) {
    Packs<1, Out, In...> value;
    value.load(data, begin, i);
    out[i] = value.apply(f, 0);
  }
}

// out[i][e] <- f(out[i][e], in[i][e]...) for every element e of the positions i whose tensor is of `type`. The kernel walks
// memory, not indices: a target with gaps is worked on in a copy, and so is what lies otherwise or overlaps.
template <typename Out, typename... In, typename F>
void run_lists(at::ScalarType type, at::TensorList out, const std::array<at::TensorList, sizeof...(In)>& in, const F& f) {
  constexpr int slots = 1 + sizeof...(In);
  constexpr int64_t chunk = kChunkBytes / sizeof(Out);
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  static_assert(sizeof(Table<slots>) <= 4000, "the table must fit the kernel's arguments");
  Table<slots> table;
  table.count = 0;
  table.first_chunk[0] = 0;
  std::vector<at::Tensor> copies;  // until they are launched on
  std::vector<std::pair<size_t, at::Tensor>> back;
  const auto flush = [&] {
    if (table.count > 0) {
      lists_kernel<F, Out, In...>
          <<<table.first_chunk[table.count], kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(table, f);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
      table.count = 0;
    }
  };
  for (size_t i = 0; i < out.size(); ++i) {
    const at::Tensor& t = out[i];
    const int64_t numel = t.numel();
    if (t.scalar_type() != type) {
      continue;
    }
    const bool dense = t.is_non_overlapping_and_dense();
    if (!dense) {
      at::assert_no_internal_overlap(t);
      back.emplace_back(i, t.contiguous());
    }
    if (numel == 0) {
      continue;
    }
    const at::Tensor& work = dense ? t : back.back().second;
    const int64_t chunks = (numel + chunk - 1) / chunk;
    TORCH_CHECK(chunks <= most, "a tensor is too large for one launch.");
    if (table.count == Table<slots>::kTensors || table.first_chunk[table.count] + chunks > most) {
      flush();
    }
    void** data = table.data[table.count];
    data[0] = work.mutable_data_ptr();
    for (size_t k = 0; k < in.size(); ++k) {
      const at::Tensor& input = in[k][i];
      if (alongside(input, work)) {
        data[k + 1] = const_cast<void*>(input.const_data_ptr());
      } else {
        copies.push_back(at::empty_like(work, input.options()).copy_(input));
        data[k + 1] = copies.back().mutable_data_ptr();
      }
    }
    table.numel[table.count] = numel;
    table.first_chunk[table.count + 1] = table.first_chunk[table.count] + static_cast<uint32_t>(chunks);
    ++table.count;
  }
  flush();
  for (const auto& [i, worked_on] : back) {
    out[i].copy_(worked_on);
  }
}

}  // namespace cl_bench
