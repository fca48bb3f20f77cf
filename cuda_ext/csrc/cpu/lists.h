// Element-wise work on lists of tensors, in one pass over memory. Positions whose tensors lie alike in memory are one long row
// of elements, cut among torch's own threads wherever tensors end: many small tensors cost little more than one large one. Any
// other position goes through TensorIterator, which walks every stride.
#pragma once

#include "../lanes.h"
#include "../ops.h"

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

namespace cl_bench {

constexpr int64_t kGrain = 32768;  // elements below which a second thread does not pay

// How elements are stored: what is written (and read before), then what is only read. A bool is read as uint8_t: compilers
// leave a loop that reads bool one element at a time.
template <typename Out, typename... In>
struct Stored {
  static constexpr size_t inputs = sizeof...(In);
  static constexpr auto each_input = std::index_sequence_for<In...>{};
  using Others = std::array<at::TensorList, inputs>;

  // out[i][e] <- f(out[i][e], in[i][e]...) for every element e of the positions i whose tensor is of `type`.
  template <typename F>
  static void run(at::ScalarType type, at::TensorList out, const Others& in, const F& f) {
    std::vector<Row> rows;
    rows.reserve(out.size());
    int64_t total = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const at::Tensor& t = out[i];
      if (t.scalar_type() != type) {
        continue;
      }
      bool alike = t.is_non_overlapping_and_dense();
      for (const at::TensorList& list : in) {
        alike = alike && alongside(list[i], t);
      }
      if (!alike) {
        strided(t, in, i, f);
      } else if (t.numel() > 0) {
        rows.push_back({total, t.numel(), static_cast<Out*>(t.mutable_data_ptr()), pointers(in, i, each_input)});
        total += t.numel();
      }
    }
    const auto walk = [&](int64_t begin, int64_t end) {
      const auto after = [](int64_t at, const Row& row) { return at < row.first; };
      auto row = std::upper_bound(rows.begin(), rows.end(), begin, after) - 1;
      for (; begin < end; ++row) {
        const int64_t skipped = begin - row->first;
        const int64_t n = std::min(row->numel - skipped, end - begin);
        flat(row->out + skipped, row->in, skipped, n, f, each_input);
        begin += n;
      }
    };
    if (total > 0) {
      at::parallel_for(0, total, kGrain, walk);
    }
  }

 private:
  struct Row {
    int64_t first, numel;
    Out* out;
    std::tuple<const In*...> in;
  };

  template <size_t... K>
  static std::tuple<const In*...> pointers(const Others& in, size_t i, std::index_sequence<K...>) {
    return {static_cast<const In*>(in[K][i].const_data_ptr())...};
  }

  template <typename F, size_t... K>
  static void flat(
      Out* out, const std::tuple<const In*...>& from, int64_t skipped, int64_t n, const F& f, std::index_sequence<K...>) {
    const std::tuple<const In*...> in{std::get<K>(from) + skipped...};
    CL_BENCH_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      out[i] = f(out[i], std::get<K>(in)[i]...);
    }
  }

  template <typename F, size_t... K>
  static void block(char** data, const int64_t* strides, int64_t n, const F& f, std::index_sequence<K...>) {
    for (int64_t i = 0; i < n; ++i) {
      auto* o = reinterpret_cast<Out*>(data[0] + i * strides[0]);
      *o = f(*o, *reinterpret_cast<const In*>(data[K + 1] + i * strides[K + 1])...);
    }
  }

  // One position of any layout; TensorIterator refuses a target whose elements share memory.
  template <typename F>
  static void strided(const at::Tensor& out, const Others& in, size_t i, const F& f) {
    std::vector<at::Tensor> now;
    now.reserve(inputs);
    at::TensorIteratorConfig config;
    config.add_output(out);
    for (const at::TensorList& list : in) {
      now.push_back(safe_beside(list[i], out) ? list[i] : list[i].clone());
      config.add_const_input(now.back());
    }
    auto iterator = config.resize_outputs(false).check_all_same_dtype(false).build();
    iterator.for_each([&f](char** data, const int64_t* strides, int64_t n) { block(data, strides, n, f, each_input); });
  }
};

}  // namespace cl_bench
