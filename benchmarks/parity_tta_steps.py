"""Test-time methods against their authors' own repositories, batch by batch, on the same network and the same images.

    python benchmarks/parity_tta_steps.py --checkouts DIR              # everything; writes results/parity/tta_steps.md
    python benchmarks/parity_tta_steps.py --checkouts DIR --only memo

``DIR`` holds clones of the repositories below at the commits that ``benchmarks/official/checkouts.py`` names; another
commit is refused. ``../shared`` (or ``$CL_BENCH_SHARED``) holds CIFAR-10-C and the ResNet-20. Their code runs as it is, in
double precision, with our weights, images, augmented views and random draws on both sides; nothing of theirs is kept. A
difference that is meant to be there has a row of its own with its reason and its number, and fails if it goes away.
"""

from __future__ import annotations

from pathlib import Path

from official import checkouts

OUT = Path(__file__).resolve().parents[1] / "results" / "parity" / "tta_steps.md"
KINDS = {"memo": "official.tta_memo:rows", "vida": "official.tta_vida:rows", "shot": "official.tta_shot:rows",
         "t3a": "official.tta:t3a", "note": "official.tta_note:rows", "ccc": "official.tta:rdumb",
         "rotta": "official.tta:rotta"}
HEAD = """
# Test-time methods against their authors' code, batch by batch

Made by `python benchmarks/parity_tta_steps.py --checkouts DIR`. The official classes and functions run as they are, in
float64 unless a row says otherwise, on the ResNet-20 (ViDA: the embedded ViT; MEMO also on its own GroupNorm network) and
the first batches of CIFAR-10-C's corruptions, with our augmented views and random draws. The largest difference of a logit
is shown; rows that are meant to differ say why, and would fail if they did not. Whole streams beside
mariodoebler/test-time-adaptation: [tta_cifar10c_1k.md](tta_cifar10c_1k.md). The label shift adapter's authors have released
no code.
"""

if __name__ == "__main__":
    raise SystemExit(checkouts.asked(__doc__ or "", KINDS, OUT, HEAD))
