"""Native operators of cl-bench, each beside its definition in plain torch.

Importing this package compiles nothing, reads no environment variable and cannot fail for want of a compiler. It defines the
operators ``torch.ops.cl_bench.*`` with a definition in plain torch as their kernel for every device. At the first call of any
operator, compiled kernels that fit this machine and this torch are added where they are already built; they then answer
for their device. Operators that work element by element give the same bits as their definition; those that sum say in
their tests how far they may lie from it.

==================  ====================================================================================================
``CL_BENCH_OPS``    what happens at the first call
==================  ====================================================================================================
unset, ``auto``     compiled kernels that are already built are used; nothing is ever compiled
``native``          kernels that are missing are compiled first; without a compiler one warning, then the definitions
``reference``       the plain-torch definitions only
==================  ====================================================================================================

To add an operator: one function in ``operators/``, declared by :func:`declaration.operator` (it is definition, schema, checks
and fake kernel at once); one file of its name in ``csrc/cpu`` and one in ``csrc/cuda``; its row in the tests and in the
benchmark.
"""

from __future__ import annotations

from .native import backend, build
from .operators.batchnorm_mix import batchnorm_mix
from .operators.entropy import entropy_filter, entropy_filter_grad
from .operators.fisher import anchored_penalty_grad_, fisher_accumulate_
from .operators.glass import glass_origin
from .operators.selective_ema import selective_ema_

__all__ = [
    "anchored_penalty_grad_", "backend", "batchnorm_mix", "build", "entropy_filter", "entropy_filter_grad",
    "fisher_accumulate_", "glass_origin", "selective_ema_",
]
