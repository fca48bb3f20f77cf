"""Steps of continual-learning methods against the official repositories' own, in double precision with the same draws.

    python benchmarks/parity_cl_steps.py --checkouts DIR               # everything; writes results/parity/cl_steps.md
    python benchmarks/parity_cl_steps.py --checkouts DIR --only mammoth

``DIR`` holds clones of the repositories below at the commits that ``benchmarks/official/checkouts.py`` names; another
commit is refused. Their functions run as they are, on tiny networks with our weights, batches, draws and one optimizer on
both sides; nothing of theirs is kept. A difference that is meant to be there has a row of its own with its reason and its
number, and fails if it goes away.
"""

from __future__ import annotations

from pathlib import Path

from official import checkouts

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "cl_steps.md"
KINDS = {"mammoth": "official.mammoth:rows", "facil": "official.facil:rows", "gpm": "official.gpm:gpm",
         "trgp": "official.gpm:trgp", "exssnet": "official.exssnet:rows"}
HEAD = """
# Steps against the official code

Made by `python benchmarks/parity_cl_steps.py --checkouts DIR`. The official functions (Mammoth's `observe` and `end_task`,
FACIL's criteria and Fisher, GPM's and TRGP's training, spaces and regimes, ExSSNeT's two training loops) run as they are,
float64, with our weights, our batches, the same random draws and the same optimizer. The largest absolute difference is
shown; rows that are meant to differ say why, and would fail if they did not.
"""

if __name__ == "__main__":
    raise SystemExit(checkouts.asked(__doc__ or "", KINDS, OUT, HEAD))
