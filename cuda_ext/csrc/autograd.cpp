// What autograd sees of the operators, for the device of this library (CL_BENCH_AUTOGRAD is AutogradCPU or AutogradCUDA). The
// same as declaration.py registers for every device, without a call into Python, which costs more than the work itself for a
// list of hundreds of tensors.
#include "ops.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <initializer_list>
#include <string>
#include <tuple>

namespace cl_bench {
namespace {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeList = std::optional<TensorList>;
using Filtered = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("cl_bench::") + name).c_str(), "").typed<Signature>();
}

void refuse(const char* op, const char* name, const Tensor& tensor) {
  TORCH_CHECK(
      !tensor.requires_grad(),
      op, " is not differentiable, but ", name,
      " requires grad and gradients are being recorded; call it under torch.no_grad().");
}

void refuse(const char* op, std::initializer_list<Named> lists) {
  if (!at::GradMode::is_enabled()) {
    return;
  }
  for (const Named& list : lists) {
    for (size_t i = 0; i < list.tensors.size(); ++i) {
      if (list.tensors[i].requires_grad()) {
        refuse(op, (std::string(list.name) + "[" + std::to_string(i) + "]").c_str(), list.tensors[i]);
      }
    }
  }
}

// Autograd must notice that tensors it saved for a backward pass have changed.
void changed(TensorList list) {
  for (const Tensor& tensor : list) {
    if (!tensor.is_inference()) {
      tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

void selective_ema_(TensorList target, TensorList source, MaybeList mask, double momentum, MaybeList fill) {
  static const auto op = find<void(TensorList, TensorList, MaybeList, double, MaybeList)>("selective_ema_");
  refuse("selective_ema_", {{"target", target}, {"source", source}, {"fill", fill.value_or(TensorList())}});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.call(target, source, mask, momentum, fill);
  }
  changed(target);
}

void fisher_accumulate_(TensorList importance, TensorList gradient, double weight) {
  static const auto op = find<void(TensorList, TensorList, double)>("fisher_accumulate_");
  refuse("fisher_accumulate_", {{"importance", importance}, {"gradient", gradient}});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.call(importance, gradient, weight);
  }
  changed(importance);
}

void anchored_penalty_grad_(
    TensorList gradient, TensorList importance, TensorList value, TensorList anchor, double weight) {
  static const auto op = find<void(TensorList, TensorList, TensorList, TensorList, double)>("anchored_penalty_grad_");
  refuse(
      "anchored_penalty_grad_",
      {{"gradient", gradient}, {"importance", importance}, {"value", value}, {"anchor", anchor}});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.call(gradient, importance, value, anchor, weight);
  }
  changed(gradient);
}

Filtered filter(const Tensor& logits, double margin) {
  static const auto op = find<Filtered(const Tensor&, double)>("entropy_filter");
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(logits, margin);
}

Tensor entropy_filter_grad(const Tensor& logits, const Tensor& entropy, const Tensor& logsumexp, const Tensor& upstream) {
  static const auto op = find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&)>("entropy_filter_grad");
  if (at::GradMode::is_enabled()) {
    refuse("entropy_filter_grad", "logits", logits);
    refuse("entropy_filter_grad", "entropy", entropy);
    refuse("entropy_filter_grad", "logsumexp", logsumexp);
    refuse("entropy_filter_grad", "upstream", upstream);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(logits, entropy, logsumexp, upstream);
}

struct EntropyFilter : torch::autograd::Function<EntropyFilter> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, double margin) {
    const auto [entropy, confidence, reliable, logsumexp] = filter(logits, margin);
    ctx->set_materialize_grads(false);  // no zeros for what nobody differentiates
    ctx->save_for_backward({logits, entropy, logsumexp});
    ctx->mark_non_differentiable({confidence, reliable, logsumexp});
    return {entropy, confidence, reliable, logsumexp};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    if (!upstream[0].defined()) {
      return {Tensor(), Tensor()};
    }
    const variable_list saved = ctx->get_saved_variables();
    static const auto op = find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&)>("entropy_filter_grad");
    return {op.call(saved[0], saved[1], saved[2], upstream[0]), Tensor()};
  }
};

Filtered entropy_filter(const Tensor& logits, double margin) {
  if (!at::GradMode::is_enabled() || !logits.requires_grad()) {
    return filter(logits, margin);
  }
  const variable_list out = EntropyFilter::apply(logits, margin);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace
}  // namespace cl_bench

TORCH_LIBRARY_IMPL(cl_bench, CL_BENCH_AUTOGRAD, m) {
  m.impl("selective_ema_", &cl_bench::selective_ema_);
  m.impl("fisher_accumulate_", &cl_bench::fisher_accumulate_);
  m.impl("anchored_penalty_grad_", &cl_bench::anchored_penalty_grad_);
  m.impl("entropy_filter", &cl_bench::entropy_filter);
  m.impl("entropy_filter_grad", &cl_bench::entropy_filter_grad);
}
