"""The official learners themselves on the embedded ViT and Split-Digits, fed with our batches, beside our methods.

    python benchmarks/parity_cl_reference.py --checkouts DIR               # everything; writes results/parity/cl_reference.md
    python benchmarks/parity_cl_reference.py --checkouts DIR --only slca

``DIR`` holds clones of the repositories at the commits that ``benchmarks/official/checkouts.py`` names; another commit is
refused. Weights are copied across, dropout is 0, both sides see the same batches in the same order; what they draw is drawn
once. Learners that are not listed are compared by their golden vectors in ``tests/test_golden_continual*.py``.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from official import checkouts
from scipy import stats

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "cl_reference.md"
SHIPPED = OUT.with_name("cl_shipped.json")
KINDS = {"pilot": "official.prompts:pilot", "ranpac": "official.learners:ranpac", "slca": "official.learners:slca",
         "ease": "official.ease:ease", "aper": "official.aper:aper", "mos": "official.mos:mos",
         "inflora": "official.lowrank:inflora", "sdlora": "official.lowrank:sdlora", "coda": "official.prompts:both",
         "lae": "official.lae:lae", "sema": "official.sema:sema", "olora": "official.olora:olora",
         "codyra": "official.codyra:codyra", "peft": "official.tuners:peft",
         "adapterhub": "official.tuners:adapterhub"}
HEAD = """
# Official learners beside ours

Made by `python benchmarks/parity_cl_reference.py --checkouts DIR`. The official learners' own training, statistics and
answers run on the embedded ViT (three blocks of width 64) and on three experiences of Split-Digits, with the batches that our
method was given by its own loop, the same start and no dropout, in double precision unless a row says otherwise.

The columns "as shipped", made by `python benchmarks/parity_cl_shipped.py --checkouts DIR`, are accuracies in percent on all
test images of the six classes, once a learner, with nothing aligned: each side draws its own start, batches and dropout. The
difference is the mean over seeds, with its 95 % t-interval: after a handful of images and steps seeds differ by many points.
L2P and DualPrompt start as in their authors' JAX code here, prompts and keys from U(0, 0.01) and the head at zero; PILOT's L2P
draws them from U(-1, 1), CODA-Prompt's DualPrompt from U(0, 1), both with a random head. `--same-start` copies the start alone.
"""


def as_shipped() -> checkouts.Beside:
    """Accuracies of both sides where nothing is aligned, by learner, as ``parity_cl_shipped.py`` left them."""
    held = json.loads(SHIPPED.read_text()) if SHIPPED.exists() else {}
    cells = {}
    for what, pairs in (item for learners in held.values() for item in learners.items()):
        gaps = [ours - theirs for ours, theirs in pairs]
        half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        ours, theirs = (statistics.fmean(pair[side] for pair in pairs) for side in (0, 1))
        cells[what] = f"{ours:.1f}", f"{theirs:.1f}", f"{statistics.fmean(gaps):+.1f} ± {half:.1f} ({len(gaps)} seeds)"
    return checkouts.Beside(("as shipped: ours", "official", "difference"), cells)


if __name__ == "__main__":
    raise SystemExit(checkouts.asked(__doc__ or "", KINDS, OUT, HEAD, as_shipped))
