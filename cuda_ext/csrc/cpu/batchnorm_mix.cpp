// batchnorm_mix on the CPU: channels on torch's own threads. A channel's mean, then its squared distances from it, then the
// normalised values; where images lie channels-last, a vector holds as many channels as it has lanes.
#include "../batchnorm_mix.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

namespace cl_bench {
namespace {

using at::vec::Vectorized;

template <typename T>
struct Mix {
  const T *mean, *var, *weight, *bias;
  T *mixed_mean, *mixed_var;
  T alpha, eps, count, divisor;

  // From a channel's sum of distances and own mean: the scale and shift of its values.
  std::pair<T, T> of(int64_t c, T own, T squares) const {
    const T m = mean[c] + alpha * (own - mean[c]);
    const T v = var[c] + alpha * (squares / divisor - var[c]);
    mixed_mean[c] = m;
    mixed_var[c] = v;
    const T scale = (weight != nullptr ? weight[c] : T(1)) / std::sqrt(v + eps);
    return {scale, (bias != nullptr ? bias[c] : T(0)) - m * scale};
  }
};

template <typename T>
T folded(const Vectorized<T>& lanes) {
  T value[Vectorized<T>::size()];
  lanes.store(value);
  T all = 0;
  for (int k = 0; k < Vectorized<T>::size(); ++k) {
    all += value[k];
  }
  return all;
}

// Sum over the planes of a channel of what `term` makes of a vector; four sums beside each other hide their latency.
template <typename T, typename Term, typename One>
T over_planes(const T* x, int64_t images, int64_t stride, int64_t pixels, const Term& term, const One& one) {
  using Vec = Vectorized<T>;
  constexpr int64_t size = Vec::size();
  double all = 0;
  for (int64_t n = 0; n < images; ++n) {
    const T* p = x + n * stride;
    Vec a(T(0)), b(T(0)), c(T(0)), d(T(0));
    int64_t i = 0;
    for (; i + 4 * size <= pixels; i += 4 * size) {
      a = a + term(Vec::loadu(p + i));
      b = b + term(Vec::loadu(p + i + size));
      c = c + term(Vec::loadu(p + i + 2 * size));
      d = d + term(Vec::loadu(p + i + 3 * size));
    }
    for (; i + size <= pixels; i += size) {
      a = a + term(Vec::loadu(p + i));
    }
    T rest = folded<T>((a + b) + (c + d));
    for (; i < pixels; ++i) {
      rest += one(p[i]);
    }
    all += static_cast<double>(rest);
  }
  return static_cast<T>(all);
}

template <typename T>
void planes(const T* x, T* out, const Mix<T>& mix, int64_t images, int64_t channels, int64_t pixels) {
  using Vec = Vectorized<T>;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, images * pixels));
  at::parallel_for(0, channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const T* from = x + c * pixels;
      const int64_t stride = channels * pixels;
      const T own = over_planes<T>(from, images, stride, pixels, [](Vec v) { return v; }, [](T v) { return v; }) / mix.count;
      const Vec centre(own);
      const T squares = over_planes<T>(
          from, images, stride, pixels, [centre](Vec v) { const Vec away = v - centre; return away * away; },
          [own](T v) { return (v - own) * (v - own); });
      const auto [scale, shift] = mix.of(c, own, squares);
      const Vec scales(scale), shifts(shift);
      for (int64_t n = 0; n < images; ++n) {
        const T* p = from + n * stride;
        T* q = out + c * pixels + n * stride;
        int64_t i = 0;
        for (; i + Vec::size() <= pixels; i += Vec::size()) {
          at::vec::fmadd(Vec::loadu(p + i), scales, shifts).store(q + i);
        }
        for (; i < pixels; ++i) {
          q[i] = p[i] * scale + shift;
        }
      }
    }
  });
}

// Channels last: rows of all channels. Blocks of rows are summed side by side in double and added in order, so that the number of
// threads changes nothing.
template <typename T>
void last(const T* x, T* out, const Mix<T>& mix, int64_t rows, int64_t channels) {
  using Vec = Vectorized<T>;
  constexpr int64_t block = 512;
  const int64_t blocks = (rows + block - 1) / block;
  std::vector<double> sums(blocks * channels);
  std::vector<T> own(channels), scale(channels), shift(channels);
  const auto sum = [&](bool squared) {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> kept(channels);
      for (int64_t b = begin; b < end; ++b) {
        std::fill(kept.begin(), kept.end(), T(0));
        for (int64_t row = b * block; row < std::min(rows, (b + 1) * block); ++row) {
          const T* p = x + row * channels;
          int64_t c = 0;
          for (; c + Vec::size() <= channels; c += Vec::size()) {
            Vec v = Vec::loadu(p + c);
            if (squared) {
              v = v - Vec::loadu(own.data() + c);
              v = v * v;
            }
            (Vec::loadu(kept.data() + c) + v).store(kept.data() + c);
          }
          for (; c < channels; ++c) {
            const T v = squared ? p[c] - own[c] : p[c];
            kept[c] += squared ? v * v : v;
          }
        }
        std::copy(kept.begin(), kept.end(), sums.begin() + b * channels);
      }
    });
  };
  const auto total = [&](int64_t c) {
    double all = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      all += sums[b * channels + c];
    }
    return static_cast<T>(all);
  };
  sum(false);
  for (int64_t c = 0; c < channels; ++c) {
    own[c] = total(c) / mix.count;
  }
  sum(true);
  for (int64_t c = 0; c < channels; ++c) {
    std::tie(scale[c], shift[c]) = mix.of(c, own[c], total(c));
  }
  at::parallel_for(0, rows, std::max<int64_t>(1, 32768 / channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* p = x + row * channels;
      T* q = out + row * channels;
      int64_t c = 0;
      for (; c + Vec::size() <= channels; c += Vec::size()) {
        at::vec::fmadd(Vec::loadu(p + c), Vec::loadu(scale.data() + c), Vec::loadu(shift.data() + c)).store(q + c);
      }
      for (; c < channels; ++c) {
        q[c] = p[c] * scale[c] + shift[c];
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batchnorm_mix(
    const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double alpha, double eps, bool unbiased) {
  check_mix(x, mean, var, weight, bias);
  const at::MemoryFormat format = format_of(x);
  const at::Tensor wide = x.to(mean.scalar_type()).contiguous(format);
  const at::Tensor out = at::empty_like(wide), m = mean.contiguous(), v = var.contiguous();
  const at::Tensor mixed_mean = at::empty_like(m), mixed_var = at::empty_like(m);
  const at::Tensor w = weight.has_value() ? weight->contiguous() : at::Tensor();
  const at::Tensor b = bias.has_value() ? bias->contiguous() : at::Tensor();
  const int64_t channels = x.size(1), count = x.numel() / channels;
  AT_DISPATCH_FLOATING_TYPES(wide.scalar_type(), "batchnorm_mix", [&] {
    const Mix<scalar_t> mix{
        m.const_data_ptr<scalar_t>(), v.const_data_ptr<scalar_t>(), w.defined() ? w.const_data_ptr<scalar_t>() : nullptr,
        b.defined() ? b.const_data_ptr<scalar_t>() : nullptr, mixed_mean.mutable_data_ptr<scalar_t>(),
        mixed_var.mutable_data_ptr<scalar_t>(), static_cast<scalar_t>(alpha), static_cast<scalar_t>(eps),
        static_cast<scalar_t>(count), static_cast<scalar_t>(unbiased && count > 1 ? count - 1 : count)};
    const scalar_t* from = wide.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    if (format == at::MemoryFormat::ChannelsLast) {
      last<scalar_t>(from, to, mix, count, channels);
    } else if (x.dim() == 2) {
      last<scalar_t>(from, to, mix, count, channels);
    } else {
      planes<scalar_t>(from, to, mix, x.size(0), channels, count / x.size(0));
    }
  });
  return {out.to(x.scalar_type()), mixed_mean, mixed_var};
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CPU, m) {
  m.impl("batchnorm_mix", &cl_bench::batchnorm_mix);
}
