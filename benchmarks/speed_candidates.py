"""What a native operator could gain at most: torch's own time beside what the machine's memory and matrix products allow.

    python benchmarks/speed_candidates.py [--threads 1]

Writes results/speed/candidates.json.

Three operations that methods are made of, each as the best plain torch does it (in place, no intermediate that is not
needed). The floor is the longer of two times: the bytes that must move (each input read once, each output written once) at
the rate of a copy measured here, and the multiplications at the rate of a large matrix product measured here. `at most` is
torch's time over the floor: what a kernel of ours would gain if it were perfect. Sizes are a ViT-B/16's on 16 images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
TOKENS, WIDTH, RANK, ADAPTERS, IMAGES = 197, 768, 16, 10, 16


def seconds(do: Callable[[], Any], repeats: int = 7) -> float:
    """Median seconds of a call after two to warm up."""
    spent = []
    for turn in range(-2, repeats):
        began = time.perf_counter()
        do()
        if turn >= 0:
            spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def cases() -> list[tuple[str, str, Callable[[], Any], float, float]]:
    """(operation, on, torch's way, multiply-adds, bytes)."""
    draw = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    found = []
    for k in (32, 256):
        gradients, spaces = [rand(WIDTH, WIDTH) for _ in range(12)], [torch.linalg.qr(rand(WIDTH, k))[0] for _ in range(12)]

        def project(gradients: Any = gradients, spaces: Any = spaces) -> None:
            for g, u in zip(gradients, spaces, strict=True):
                g.addmm_(g @ u, u.T, alpha=-1e-6)

        found.append(("project_out_", f"12 gradients of 768 x 768, {k} protected directions", project,
                      12 * 2 * WIDTH * WIDTH * k, 12 * 4 * (2 * WIDTH * WIDTH + WIDTH * k)))
    x, y = rand(IMAGES * TOKENS, WIDTH), rand(IMAGES * TOKENS, WIDTH)
    for open_ranks in (RANK, RANK // 4):
        down, up = rand(open_ranks, WIDTH), rand(WIDTH, open_ranks)
        gates = torch.rand(open_ranks, generator=draw)

        def gated(down: Any = down, up: Any = up, gates: Any = gates) -> None:
            y.addmm_(x @ down.T, (up * gates).T, alpha=1e-6)

        rows = IMAGES * TOKENS
        found.append(("rank_gated_linear", f"{rows} x 768, {open_ranks} of 16 ranks open", gated,
                      2 * rows * WIDTH * open_ranks, 4 * (3 * rows * WIDTH + 2 * WIDTH * open_ranks)))
    downs, ups = rand(ADAPTERS, WIDTH, RANK), rand(ADAPTERS, RANK, WIDTH)
    which = torch.randint(ADAPTERS, (IMAGES,), generator=draw)
    a, b = rand(IMAGES, TOKENS, WIDTH), rand(IMAGES, TOKENS, WIDTH)
    found.append(("grouped_lora", f"{IMAGES} images of 197 tokens, one of {ADAPTERS} adapters of rank 16 each",
                  lambda: b.baddbmm_(torch.bmm(a, downs[which]), ups[which], alpha=1e-6),
                  2 * IMAGES * TOKENS * WIDTH * RANK, 4 * (3 * IMAGES * TOKENS * WIDTH + 2 * ADAPTERS * WIDTH * RANK)))
    one, two = rand(256, 1, WIDTH), rand(256, 1, WIDTH)
    many = torch.randint(ADAPTERS, (256,), generator=draw)
    found.append(("grouped_lora", f"256 vectors, one of {ADAPTERS} adapters of rank 16 each",
                  lambda: two.baddbmm_(torch.bmm(one, downs[many]), ups[many], alpha=1e-6),
                  2 * 256 * WIDTH * RANK, 4 * (3 * 256 * WIDTH + 2 * ADAPTERS * WIDTH * RANK)))
    return found


def main() -> None:
    """The machine's two rates, then every operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "speed")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.set_grad_enabled(False)
    source = torch.empty(2**25)
    target = torch.empty_like(source)
    n = 1024
    left, right = torch.randn(n, n), torch.randn(n, n)
    rows = []
    for name, on, do, products, moved in cases():
        copy = 2 * 4 * len(source) / seconds(lambda: target.copy_(source), 3)
        rate = n**3 / seconds(lambda: left @ right, 3)
        took, floor = seconds(do), max(moved / copy, products / rate)
        rows.append({"operation": name, "on": on, "torch ms": 1000 * took, "floor ms": 1000 * floor,
                     "bound by": "memory" if moved / copy > products / rate else "products", "at most x": took / floor})
        print(rows[-1], flush=True)
    sys.path.insert(0, str(HERE / "gpu"))
    from common import keep_figures

    keep_figures(o.out, "candidates", __doc__, rows)


if __name__ == "__main__":
    main()
