// selective_ema_ on a GPU: one launch for up to kTensors tensors of a dtype, whatever their sizes. Every block finds its tensor
// in a table that travels with the launch, so nothing is copied to the device, nothing waits, and a CUDA graph can record it.
#include "../ops.h"

#include <ATen/Dispatch.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace cl_bench {
namespace {

constexpr int kTensors = 72;  // the table must stay below the 4 KiB of arguments that every driver takes
constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // packs that a thread has in flight
constexpr int64_t kChunk = 16384;  // elements of a block: a multiple of every pack, so that chunks keep the alignment

struct Entry {
  void* target;
  const void* source;
  const bool* mask;
  const void* keep;
  int64_t numel;
};

struct Table {
  Entry entry[kTensors];
  uint32_t first_chunk[kTensors + 1];
  int count;
};
static_assert(sizeof(Table) <= 4000, "the table must fit the kernel's arguments");

// Products and sum rounded one by one, as in the reference.
__device__ __forceinline__ float average(float target, float source, float momentum, float rest) {
  return __fadd_rn(__fmul_rn(target, momentum), __fmul_rn(source, rest));
}
__device__ __forceinline__ double average(double target, double source, double momentum, double rest) {
  return __dadd_rn(__dmul_rn(target, momentum), __dmul_rn(source, rest));
}

template <typename scalar_t, typename opmath_t>
__device__ __forceinline__ scalar_t
select(scalar_t target, scalar_t source, bool mask, scalar_t keep, opmath_t momentum, opmath_t rest) {
  const opmath_t mean = average(static_cast<opmath_t>(target), static_cast<opmath_t>(source), momentum, rest);
  return mask ? keep : static_cast<scalar_t>(mean);
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

template <int N, typename T>
__device__ __forceinline__ bool aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * N) == 0;
}

template <typename scalar_t, bool has_fill>
__global__ void __launch_bounds__(kThreads)
selective_ema_kernel(const __grid_constant__ Table table, at::opmath_type<scalar_t> momentum, at::opmath_type<scalar_t> rest) {
  constexpr int N = 16 / sizeof(scalar_t);  // 16-byte accesses
  using Values = Pack<scalar_t, N>;
  using Bits = Pack<bool, N>;

  int low = 0;
  int high = table.count;  // first_chunk[low] <= blockIdx.x < first_chunk[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_chunk[middle] <= blockIdx.x ? low : high) = middle;
  }
  const Entry& entry = table.entry[low];
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first_chunk[low]) * kChunk;
  const int count = static_cast<int>(min(kChunk, entry.numel - begin));
  scalar_t* target = static_cast<scalar_t*>(entry.target) + begin;
  const scalar_t* source = static_cast<const scalar_t*>(entry.source) + begin;
  const bool* mask = entry.mask + begin;
  const scalar_t* keep = static_cast<const scalar_t*>(entry.keep) + begin;

  int done = 0;
  if (aligned<N>(target) && aligned<N>(source) && aligned<N>(mask) && (!has_fill || aligned<N>(keep))) {
    const int packs = count / N;
    for (int start = threadIdx.x; start < packs; start += kThreads * kUnroll) {
      Values t[kUnroll], s[kUnroll], k[kUnroll];
      Bits b[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int p = start + u * kThreads;
        if (p < packs) {
          t[u] = reinterpret_cast<const Values*>(target)[p];
          s[u] = reinterpret_cast<const Values*>(source)[p];
          b[u] = reinterpret_cast<const Bits*>(mask)[p];
          if constexpr (has_fill) {
            k[u] = reinterpret_cast<const Values*>(keep)[p];
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int p = start + u * kThreads;
        if (p < packs) {
#pragma unroll
          for (int j = 0; j < N; ++j) {
            const scalar_t kept = has_fill ? k[u].value[j] : t[u].value[j];
            t[u].value[j] = select(t[u].value[j], s[u].value[j], b[u].value[j], kept, momentum, rest);
          }
          reinterpret_cast<Values*>(target)[p] = t[u];
        }
      }
    }
    done = packs * N;
  }
  for (int i = done + threadIdx.x; i < count; i += kThreads) {
    target[i] = select(target[i], source[i], mask[i], has_fill ? keep[i] : target[i], momentum, rest);
  }
}

// Same values as `input`, laid out in memory as the dense tensor `like`.
at::Tensor laid_out(const at::Tensor& input, const at::Tensor& like) {
  if (input.strides() == like.strides() || (input.is_contiguous() && like.is_contiguous())) {
    return input;
  }
  return at::empty_like(like, input.options()).copy_(input);
}

struct Work {
  at::Tensor target, source, mask, keep;
};

template <typename scalar_t>
void launch(const Table& table, double momentum, bool has_fill) {
  using opmath_t = at::opmath_type<scalar_t>;
  const auto m = static_cast<opmath_t>(momentum);
  const auto rest = static_cast<opmath_t>(1.0 - momentum);
  const auto kernel = has_fill ? selective_ema_kernel<scalar_t, true> : selective_ema_kernel<scalar_t, false>;
  kernel<<<table.first_chunk[table.count], kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(table, m, rest);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_all(const std::vector<Work>& works, at::ScalarType type, double momentum, bool has_fill) {
  Table table{};
  const auto flush = [&] {
    if (table.count > 0) {
      AT_DISPATCH_FLOATING_TYPES_AND2(
          at::kHalf, at::kBFloat16, type, "selective_ema_", [&] { launch<scalar_t>(table, momentum, has_fill); });
      table = Table{};
    }
  };
  for (const Work& work : works) {
    if (work.target.scalar_type() != type || work.target.numel() == 0) {
      continue;
    }
    const int64_t chunks = (work.target.numel() + kChunk - 1) / kChunk;
    TORCH_CHECK(chunks <= std::numeric_limits<int32_t>::max(), "selective_ema_: a tensor is too large for one launch.");
    if (table.count == kTensors || table.first_chunk[table.count] + chunks > std::numeric_limits<int32_t>::max()) {
      flush();
    }
    table.entry[table.count] = {
        work.target.mutable_data_ptr(),
        work.source.const_data_ptr(),
        work.mask.const_data_ptr<bool>(),
        work.keep.const_data_ptr(),
        work.target.numel()};
    table.first_chunk[table.count + 1] = table.first_chunk[table.count] + static_cast<uint32_t>(chunks);
    ++table.count;
  }
  flush();
}

void selective_ema_(
    at::TensorList target,
    at::TensorList source,
    at::TensorList mask,
    double momentum,
    std::optional<at::TensorList> fill) {
  check_selective_ema(target, source, mask, momentum, fill);
  if (target.empty()) {
    return;
  }
  const c10::cuda::CUDAGuard guard(target[0].device());
  std::vector<Work> works;
  std::vector<at::ScalarType> types;
  works.reserve(target.size());
  for (size_t i = 0; i < target.size(); ++i) {
    const at::Tensor& t = target[i];
    at::assert_no_internal_overlap(t);
    // The kernel walks memory, not indices: a target with gaps is worked on in a copy.
    const at::Tensor dense = t.is_non_overlapping_and_dense() ? t : t.contiguous();
    works.push_back(
        {dense,
         laid_out(readable(source[i], t), dense),
         laid_out(mask[i], dense),
         fill.has_value() ? laid_out(readable((*fill)[i], t), dense) : dense});
    if (std::find(types.begin(), types.end(), t.scalar_type()) == types.end()) {
      types.push_back(t.scalar_type());
    }
  }
  for (const at::ScalarType type : types) {
    launch_all(works, type, momentum, fill.has_value());
  }
  for (size_t i = 0; i < target.size(); ++i) {
    if (!works[i].target.is_same(target[i])) {
      target[i].copy_(works[i].target);
    }
  }
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CUDA, m) {
  m.impl("selective_ema_", &cl_bench::selective_ema_);
}
