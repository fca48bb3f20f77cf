"""The official learners themselves on the embedded ViT and Split-Digits, fed with our batches, beside our methods.

    python benchmarks/parity_cl_reference.py --checkouts DIR               # everything; writes results/parity/cl_reference.md
    python benchmarks/parity_cl_reference.py --checkouts DIR --only slca

``DIR`` holds clones of the repositories at the commits that ``benchmarks/official/checkouts.py`` names; another commit is
refused. Weights are copied across, dropout is 0, both sides see the same batches in the same order; what they draw is drawn
once. Learners that are not listed are compared by their golden vectors in ``tests/test_golden_continual*.py``.
"""

from __future__ import annotations

from pathlib import Path

from official import checkouts

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "cl_reference.md"
KINDS = {"pilot": "official.prompts:pilot", "ranpac": "official.learners:ranpac", "slca": "official.learners:slca",
         "ease": "official.ease:ease", "aper": "official.aper:aper", "mos": "official.mos:mos",
         "inflora": "official.lowrank:inflora", "sdlora": "official.lowrank:sdlora", "coda": "official.prompts:both",
         "lae": "official.lae:lae", "sema": "official.sema:sema", "olora": "official.olora:olora",
         "codyra": "official.codyra:codyra", "peft": "official.tuners:peft"}
HEAD = """
# Official learners beside ours

Made by `python benchmarks/parity_cl_reference.py --checkouts DIR`. The official learners' own training, statistics and
answers run on the embedded ViT (three blocks of width 64) and on three experiences of Split-Digits, with the batches that our
method was given by its own loop, the same start and no dropout, in double precision unless a row says otherwise.
"""

if __name__ == "__main__":
    raise SystemExit(checkouts.asked(__doc__ or "", KINDS, OUT, HEAD))
