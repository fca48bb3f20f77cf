"""What is run: methods of every family, on scenarios that learn, streams, and learning between streams."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CELLS", "QUICK", "Cell"]

LEARN = ("--scenario", "split_digits", "--scenario.per_class", "24")
DOMAINS = ("--scenario", "rotated_digits", "--scenario.angles", "[0, 40, 80]")
STREAM = ("--scenario", "digits_c", "--scenario.corruptions", "[gaussian_noise, contrast, fog]", "--source.epochs", "2")
SHORT = ("--scenario", "digits_c", "--scenario.corruptions", "[fog]", "--source.epochs", "1")
CLIP = ("--scenario", "vlm_glyphs", "--scenario.domains", "2", "--scenario.shots", "2")
CLIP_STREAM = ("--scenario", "vlm_glyphs_stream", "--scenario.domains", "2", "--scenario.per_domain", "32",
               "--scenario.test_batch_size", "8")
DEPLOYED = ("--scenario", "deployed_digits", "--scenario.corruptions", "[contrast, fog]")


@dataclass(frozen=True)
class Cell:
    """One run: what ``cl-bench run`` is given."""

    method: str
    scenario: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method} on {self.scenario[1]}"

    @property
    def argv(self) -> list[str]:
        return ["run", *self.scenario, "--method", self.method, *self.options, "--device", "cpu", "--seed", "1",
                "--checkpoint_every", "0.05"]


def _epochs(n: int) -> tuple[str, ...]:
    return "--method.epochs", str(n)


# Families: baseline, prototype, regularisation, replay, adapter, subspace, projection, prompt, masks, fine-tuning,
# vision-language, test-time.
CELLS = (
    Cell("finetune", LEARN, _epochs(3)), Cell("joint", LEARN, _epochs(2)), Cell("ncm", LEARN), Cell("ranpac", LEARN),
    Cell("ewc", LEARN, _epochs(2)), Cell("lwf", DOMAINS, _epochs(1)), Cell("er", LEARN, _epochs(2)),
    Cell("derpp", DOMAINS, _epochs(1)), Cell("lora", LEARN, _epochs(2)), Cell("codyra", LEARN, ("--method.iterations", "20")),
    Cell("ease", LEARN, _epochs(2)),
    Cell("osft", LEARN, _epochs(2)), Cell("inflora", LEARN, (*_epochs(2), "--method.tasks", "5")),
    Cell("l2p", LEARN, _epochs(2)), Cell("slca", LEARN, _epochs(2)),
    Cell("gpm", (*LEARN, "--scenario.answers", "task"), _epochs(2)),
    Cell("exssnet", (*LEARN, "--scenario.answers", "task"), ("--method.mask_epochs", "2", "--method.weight_epochs", "2")),
    Cell("clip_adapter", CLIP, ("--method.iterations", "10")), Cell("tda", CLIP_STREAM),
    Cell("tent", STREAM), Cell("eata", STREAM), Cell("cotta", SHORT), Cell("rotta", STREAM), Cell("sar", STREAM),
    Cell("roid", STREAM), Cell("note", STREAM), Cell("shot", STREAM),
    Cell("tent", DEPLOYED), Cell("bn_ema", DEPLOYED), Cell("er", DEPLOYED, _epochs(2)),
)
# Of a moment each: for the tests.
_FEW = ("--scenario", "split_digits", "--scenario.per_class", "10")
_BOTH = ("--scenario", "deployed_digits", "--scenario.base", "5", "--scenario.increment", "5", *SHORT[2:4])
QUICK = (Cell("er", _FEW, _epochs(1)), Cell("codyra", _FEW, ("--method.iterations", "6")), Cell("tent", SHORT),
         Cell("tent", _BOTH, _epochs(1)))
