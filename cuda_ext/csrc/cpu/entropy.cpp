// entropy_filter on the CPU: rows on torch's own threads; a row is read twice, for its largest logit and for its sums.
#include "../lanes.h"
#include "../ops.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

namespace cl_bench {
namespace {

using at::vec::Vectorized;

template <typename wide>
struct Row {
  wide entropy, confidence, logsumexp;
};

// The lanes of a vector folded into one.
template <typename wide, typename F>
wide across(const Vectorized<wide>& lanes, const F& fold) {
  wide value[Vectorized<wide>::size()];
  lanes.store(value);
  wide all = value[0];
  for (int k = 1; k < Vectorized<wide>::size(); ++k) {
    all = fold(all, value[k]);
  }
  return all;
}

// From the largest logit m, s = sum exp(z - m) and t = sum exp(z - m) (z - m); a term whose exponential is 0 counts as 0.
template <typename wide>
Row<wide> of_row(const wide* z, int64_t n) {
  using Vec = Vectorized<wide>;
  constexpr wide lowest = -std::numeric_limits<wide>::infinity();
  Vec top(lowest);
  int64_t c = 0;
  for (; c + Vec::size() <= n; c += Vec::size()) {
    top = at::vec::maximum(top, Vec::loadu(z + c));  // NaN passes on
  }
  if (c < n) {
    Vec rest(lowest);
    rest = Vec::set(rest, Vec::loadu(z + c, n - c), n - c);
    top = at::vec::maximum(top, rest);
  }
  const wide m = across(top, [](wide a, wide b) { return a > b || std::isnan(a) ? a : b; });
  const Vec shift(m);
  const Vec zero(static_cast<wide>(0));
  Vec sums(zero), products(zero);
  const auto take = [&](Vec value) {
    const Vec away = value - shift;
    const Vec e = away.exp();
    sums = sums + e;
    products = products + Vec::blendv(away * e, zero, e == zero);
  };
  for (c = 0; c + Vec::size() <= n; c += Vec::size()) {
    take(Vec::loadu(z + c));
  }
  if (c < n) {
    Vec rest(lowest);
    take(Vec::set(rest, Vec::loadu(z + c, n - c), n - c));
  }
  const auto plus = [](wide a, wide b) { return a + b; };
  const wide s = across(sums, plus);
  const wide t = across(products, plus);
  const wide ln = std::log(s);
  return {ln - t / s, 1 / s, std::isinf(m) ? m : m + ln};
}

template <typename scalar_t, typename wide>
const wide* widened(const scalar_t* z, int64_t n, std::vector<wide>& kept) {
  if constexpr (std::is_same_v<scalar_t, wide>) {
    return z;
  } else {
    kept.resize(n);
    const auto* stored = reinterpret_cast<const typename Lane<scalar_t>::stored*>(z);
    for (int64_t c = 0; c < n; ++c) {
      kept[c] = Lane<scalar_t>::widen(stored[c]);
    }
    return kept.data();
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> entropy_filter(const at::Tensor& logits, double margin) {
  check_logits("entropy_filter", logits);
  const at::Tensor z = logits.stride(1) == 1 ? logits : logits.contiguous();
  const int64_t rows = z.size(0), classes = z.size(1);
  const at::Tensor entropy = at::empty({rows}, z.options().dtype(at::toOpMathType(z.scalar_type())));
  const at::Tensor confidence = at::empty_like(entropy), logsumexp = at::empty_like(entropy);
  const at::Tensor reliable = at::empty({rows}, z.options().dtype(at::kBool));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "entropy_filter", [&] {
    using wide = at::opmath_type<scalar_t>;
    const scalar_t* data = z.const_data_ptr<scalar_t>();
    const int64_t stride = z.stride(0);
    wide* h = entropy.mutable_data_ptr<wide>();
    wide* p = confidence.mutable_data_ptr<wide>();
    wide* lse = logsumexp.mutable_data_ptr<wide>();
    bool* ok = reliable.mutable_data_ptr<bool>();
    at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / classes), [&](int64_t begin, int64_t end) {
      std::vector<wide> kept;
      for (int64_t row = begin; row < end; ++row) {
        const Row<wide> r = of_row(widened<scalar_t, wide>(data + row * stride, classes, kept), classes);
        h[row] = r.entropy;
        p[row] = r.confidence;
        lse[row] = r.logsumexp;
        ok[row] = r.entropy < static_cast<wide>(margin);
      }
    });
  });
  return {entropy, confidence, reliable, logsumexp};
}

at::Tensor entropy_filter_grad(
    const at::Tensor& logits, const at::Tensor& entropy, const at::Tensor& logsumexp, const at::Tensor& upstream) {
  check_logits("entropy_filter_grad", logits);
  const at::Tensor z = logits.stride(1) == 1 ? logits : logits.contiguous();
  const int64_t rows = z.size(0), classes = z.size(1);
  const at::Tensor out = at::empty({rows, classes}, z.options());
  const at::Tensor hs = entropy.contiguous(), lses = logsumexp.contiguous(), ups = upstream.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, z.scalar_type(), "entropy_filter_grad", [&] {
    using wide = at::opmath_type<scalar_t>;
    using Vec = Vectorized<wide>;
    const scalar_t* data = z.const_data_ptr<scalar_t>();
    const int64_t stride = z.stride(0);
    const wide* h = hs.const_data_ptr<wide>();
    const wide* lse = lses.const_data_ptr<wide>();
    const wide* up = ups.const_data_ptr<wide>();
    auto* to = reinterpret_cast<typename Lane<scalar_t>::stored*>(out.mutable_data_ptr<scalar_t>());
    at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / classes), [&](int64_t begin, int64_t end) {
      std::vector<wide> kept, made(classes);
      for (int64_t row = begin; row < end; ++row) {
        const wide* x = widened<scalar_t, wide>(data + row * stride, classes, kept);
        const Vec shift(lse[row]), level(h[row]), scale(-up[row]), zero(static_cast<wide>(0));
        for (int64_t c = 0; c < classes; c += Vec::size()) {
          const int64_t count = std::min<int64_t>(Vec::size(), classes - c);
          const Vec log_p = Vec::loadu(x + c, count) - shift;
          const Vec e = log_p.exp();
          (Vec::blendv(e * (log_p + level), zero, e == zero) * scale).store(made.data() + c, count);
        }
        for (int64_t c = 0; c < classes; ++c) {
          to[row * classes + c] = Lane<scalar_t>::narrow(made[c]);
        }
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CPU, m) {
  m.impl("entropy_filter", &cl_bench::entropy_filter);
  m.impl("entropy_filter_grad", &cl_bench::entropy_filter_grad);
}
