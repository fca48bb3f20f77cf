// Element-wise work on positions of lists, in one pass over memory. TensorIterator merges dimensions, walks any strides and
// runs blocks of elements on torch's own threads (at::parallel_for); positions follow one another, as in the definitions.
#pragma once

#include "../lanes.h"
#include "../ops.h"

#include <ATen/TensorIterator.h>

#include <initializer_list>
#include <tuple>
#include <utility>

namespace cl_bench {

// How a block of elements is stored: what is written (and read before), then what is only read. A bool is read as uint8_t:
// compilers leave a loop that reads bool one element at a time.
template <typename Out, typename... In>
struct Stored {
  template <typename F, size_t... K>
  static void block(char** data, const int64_t* strides, int64_t n, const F& f, std::index_sequence<K...>) {
    auto* out = reinterpret_cast<Out*>(data[0]);
    if (strides[0] == sizeof(Out) && ((strides[K + 1] == sizeof(In)) && ...)) {
      const std::tuple<const In*...> in{reinterpret_cast<const In*>(data[K + 1])...};
      CL_BENCH_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        out[i] = f(out[i], std::get<K>(in)[i]...);
      }
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      auto* o = reinterpret_cast<Out*>(data[0] + i * strides[0]);
      *o = f(*o, *reinterpret_cast<const In*>(data[K + 1] + i * strides[K + 1])...);
    }
  }

  // out[e] <- f(out[e], in[e]...) for every element e.
  template <typename F>
  static void each(const at::Tensor& out, std::initializer_list<at::Tensor> inputs, const F& f) {
    std::vector<at::Tensor> now;
    now.reserve(inputs.size());
    at::TensorIteratorConfig config;
    config.add_output(out);
    for (const at::Tensor& input : inputs) {
      now.push_back(readable(input, out));
      config.add_const_input(now.back());
    }
    auto iterator = config.resize_outputs(false).check_all_same_dtype(false).build();
    iterator.for_each([&f](char** data, const int64_t* strides, int64_t n) {
      block(data, strides, n, f, std::index_sequence_for<In...>{});
    });
  }
};

}  // namespace cl_bench
