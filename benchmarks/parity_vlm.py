"""The official functions of methods for CLIP on the embedded model and the same images, beside our methods.

    python benchmarks/parity_vlm.py --checkouts DIR               # everything; writes results/parity/vlm.md
    python benchmarks/parity_vlm.py --checkouts DIR --only tpt maple

``DIR`` holds clones of the repositories at the commits that ``benchmarks/official/checkouts.py`` names; another commit is
refused. Official models are built with the sizes of the embedded one and given its weights. Methods whose core needs
features alone are compared by their golden vectors in ``tests/test_golden_vlm*.py``.
"""

from __future__ import annotations

from pathlib import Path

from official import checkouts

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "vlm.md"
KINDS = {k: f"official.vlm:{k}" for k in ("tpt", "c_tpt", "r_tpt", "coop", "maple", "coprompt")} | {
    k: f"official.vlm_weights:{k}" for k in ("clip_svd", "ramt", "moe_adapters", "c3box")
}
HEAD = """
# Official functions for CLIP beside ours

Made by `python benchmarks/parity_vlm.py --checkouts DIR`. The official classes and functions run on the embedded CLIP (image
tower of five blocks, text tower of three, both of width 64) in double precision: their models are built with its sizes
(numbers that are written into official code for ViT-B/16, the number of heads and the activation are replaced), its weights
are copied in, and both sides see the same handwritten digits and the same draws. STS has no public code that could be had.
"""

if __name__ == "__main__":
    raise SystemExit(checkouts.asked(__doc__ or "", KINDS, OUT, HEAD))
