"""Methods that leave something behind in the process, or answer with something that is no answer (see ``hostile.py``)."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from typing import Any

import numpy as np
import torch
from hostile import ANSWERS, LEARNS, LIFE, LOGITS, QUIET, Learner, stopped
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from cl_bench import Batch, Experience, LabelSpace, Method


class Leaves(Learner):
    """Leaves something behind when it has learned."""

    def end(self, exp: Experience) -> None:
        self.leave()

    def leave(self) -> Any:
        raise NotImplementedError


# ---------------------------------------------------------------------------- the process
@stopped(LIFE, "hooks of all modules")
class HooksAllModules(Leaves):
    """Hooks every module of the process, those of later runs too."""

    def leave(self) -> None:
        torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)


@stopped(LIFE, "hooks of all modules and optimizers")
class HooksAllOptimizers(Leaves):
    """Hooks every optimizer of the process."""

    def leave(self) -> None:
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: None)


@stopped(LIFE, "hooks of saved tensors")
class HooksSavedTensors(Leaves):
    """Hooks every tensor that autograd saves."""

    def leave(self) -> None:
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x).__enter__()


@stopped(LIFE, "the default dtype")
class SetsTheDtype(Leaves):
    """Leaves another default dtype."""

    def leave(self) -> None:
        torch.set_default_dtype(torch.float64)


@stopped(LIFE, "grad mode")
class TurnsGradientsOff(Leaves):
    """Leaves gradients off."""

    def leave(self) -> None:
        torch.set_grad_enabled(False)


@stopped(LIFE, "the thread count")
class TakesThreads(Leaves):
    """Takes more threads than it was given, on which the last bit depends."""

    def leave(self) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)


@stopped(LIFE, "torch's switches")
class Switches(Leaves):
    """Leaves another precision of matrix products."""

    def leave(self) -> None:
        torch.set_float32_matmul_precision("medium")


@stopped(LIFE, "signal handlers")
class IgnoresSignals(Leaves):
    """Ignores the signal by which a run is ended."""

    def leave(self) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@stopped(LIFE, "functions called at exit")
class StaysUntilTheExit(Leaves):
    """Has something done when the process ends."""

    def leave(self) -> None:
        atexit.register(int)


@stopped(LIFE, "the interpreter's hooks")
class WatchesExceptions(Leaves):
    """Takes the interpreter's exceptions."""

    def leave(self) -> None:
        sys.excepthook = lambda *parts: None


@stopped(LIFE, "the interpreter's hooks")
class WatchesTheCollector(Leaves):
    """Has itself called by the garbage collector."""

    def leave(self) -> None:
        gc.callbacks.append(lambda phase, info: None)


@stopped(LIFE, "the root logger")
class Logs(Leaves):
    """Sets up logging for everybody."""

    def leave(self) -> None:
        logging.getLogger().addHandler(logging.NullHandler())


@stopped(QUIET, "the warning filters")
class HushesWarnings(Learner):
    """Hushes everybody's warnings."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        warnings.simplefilter("ignore", UserWarning)
        return super().predict(x, space)


@stopped(LIFE, "the environment")
class SetsTheEnvironment(Leaves):
    """Sets an environment variable, which other processes inherit."""

    def leave(self) -> None:
        os.environ["CL_BENCH_SHARED"] = "/nowhere"


@stopped(LIFE, "the working directory")
class Moves(Leaves):
    """Changes the working directory."""

    def leave(self) -> None:
        os.chdir("/")


@stopped(LIFE, "the import path")
class LengthensThePath(Leaves):
    """Puts a folder before all others that modules are imported from."""

    def leave(self) -> None:
        sys.path.insert(0, "/nowhere")


@stopped(LIFE, "standard output")
class TakesTheOutput(Leaves):
    """Sends what is printed elsewhere."""

    def leave(self) -> None:
        sys.stdout = sys.__stderr__  # type: ignore[assignment]


@stopped(LIFE, "the recursion limit")
class RecursesDeeper(Leaves):
    """Raises the recursion limit."""

    def leave(self) -> None:
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)


@stopped(LIFE, "NumPy's error state")
class HushesNumPy(Leaves):
    """Hushes NumPy's warnings."""

    def leave(self) -> None:
        np.seterr(all="ignore")


@stopped(LIFE, "running threads")
class StartsAThread(Leaves):
    """Leaves a thread running."""

    def leave(self) -> None:
        threading.Thread(target=threading.Event().wait, args=(5,), daemon=True).start()


@stopped(QUIET, "grad mode")
class TurnsGradientsOn(Learner):
    """Leaves gradients on when it has answered."""

    def predict(self, x: Tensor, space: LabelSpace) -> Tensor:
        torch.set_grad_enabled(True)
        return super().predict(x, space).detach()


@stopped("because hooks on its own layers go where it goes")
class HooksItself(Learner):
    """Hooks its own backbone."""

    def begin(self, exp: Experience) -> None:
        super().begin(exp)
        self.backbone.register_forward_hook(_nothing)


def _nothing(module: Any, inputs: Any, output: Any) -> None:
    pass


@stopped("because the run's seed is set around learning, and what was before comes back after it")
class DrawsWhileLearning(Learner):
    """Draws from torch's generator while it learns."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 1e-3 * torch.randn(())


# ---------------------------------------------------------------------------- answers that are none
def answering(change: Any, name: str, doc: str) -> type[Method]:
    """A learner whose answers are changed."""
    def predict(self: Any, x: Tensor, space: LabelSpace) -> Any:
        return change(Method.predict(self, x, space))

    cls: type[Method] = type(name, (Learner,), {"predict": predict, "__doc__": doc, "__module__": __name__})
    globals()[name] = cls  # where a checkpoint finds it
    return cls


def _ended(out: Tensor) -> Tensor:
    sys.exit(0)


def _interrupted(out: Tensor) -> Tensor:
    raise KeyboardInterrupt


def _failed(out: Tensor) -> Tensor:
    raise ValueError("<b>no</b>\nanswer")


def _endless(out: Tensor) -> Tensor:
    return _endless(out)


for _name, _doc, _said, _change in (
    ("AnswersNothing", "Answers None.", "returned a NoneType", lambda out: None),
    ("AnswersATuple", "Answers a tuple.", "returned a tuple", lambda out: (out, 0)),
    ("AnswersAList", "Answers a list of rows.", "returned a list", list),
    ("AnswersNumPy", "Answers a NumPy array.", "returned a ndarray", lambda out: out.detach().numpy()),
    ("AnswersComplex", "Answers complex numbers.", "returned torch.complex64", lambda out: out.to(torch.complex64)),
    ("AnswersMeta", "Answers a tensor without content.", "on meta", lambda out: out.to("meta")),
    ("AnswersSparse", "Answers a sparse tensor.", "a sparse_coo tensor", lambda out: out.detach().to_sparse()),
    ("AnswersClasses", "Answers class numbers.", "returned (24,)", lambda out: out.argmax(1)),
    ("AnswersWhole", "Answers whole numbers.", "returned torch.int64", lambda out: out.long()),
    ("AnswersYes", "Answers yes and no.", "returned torch.bool", lambda out: out > 0),
    ("AnswersFewer", "Answers for fewer images.", "returned (23, 4)", lambda out: out[:-1]),
    ("AnswersNarrow", "Answers among fewer classes.", "returned (24, 3)", lambda out: out[:, :-1]),
    ("AnswersNaN", "Answers with what is not a number.", "NaN", lambda out: out * torch.nan),
    ("AnswersInfinity", "Answers with infinity.", "infinity", lambda out: out.abs() + torch.inf),
    ("AnswersNever", "Excludes every class.", "no finite logit", lambda out: torch.full_like(out, -torch.inf)),
    ("Ends", "Ends the process as it answers.", "ends the whole process: SystemExit: 0 (hostile_process.py:", _ended),
    ("Interrupts", "Answers as if the user had pressed Ctrl-C.", "raises KeyboardInterrupt (hostile_process.py:", _interrupted),
    ("Fails", "Fails as it answers, with markup in its sentence.", "(hostile_process.py:", _failed),
    ("Recurses", "Calls itself without end.", "RecursionError", _endless),
):
    stopped(ANSWERS, _said)(answering(_change, _name, _doc))

for _name, _doc, _said, _change in (
    ("AnswersProbabilities", "Answers probabilities.", "these are probabilities", lambda out: out.softmax(1)),
    ("AnswersSummedProbabilities", "Answers the sum of two networks' probabilities.", "sums to 2",
     lambda out: out.softmax(1) + (out + 0.1 * out.sin()).softmax(1)),
    ("AnswersTwice", "Answers the sum of two networks' log-softmaxes, which reads better calibrated than it is.",
     "the sum of 2 log-softmaxes", lambda out: out.log_softmax(1) + (out + 0.1 * out.sin()).log_softmax(1)),
):
    stopped(LOGITS, _said)(answering(_change, _name, _doc))

stopped(LEARNS, "where chance is")(answering(torch.zeros_like, "AnswersTies", "Answers the same for all classes."))
stopped("because the softmax of log-probabilities is the probabilities")(
    answering(lambda out: out.log_softmax(1), "AnswersLogProbabilities", "Answers log-probabilities."))
stopped("because the engine detaches answers")(
    answering(lambda out: out.detach().requires_grad_(), "AnswersWithGradient", "Answers a tensor that requires gradients."))
