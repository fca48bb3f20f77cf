"""Does inference over test images hold what it says? Synthetic experiments whose truth is known.

``python benchmarks/image_inference.py [OUT]`` simulates 2,000 experiments for each of 3, 5 and 10 runs and writes the table
of results/compare/image_inference.md. Two methods answer the images of five test sets; whether an answer is right is
drawn with a probability that depends, on the logit scale, on the image (shared by both methods), on the method's own way
with the image, on the run, and on run and image together. The truth given the runs integrates over images, the truth over
new runs over runs as well, by Gauss-Hermite quadrature.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cl_bench.numbers.statistics import t_interval
from cl_bench.numbers.statistics.images import image_test

RUNS, EXPERIMENTS = (3, 5, 10), 2000
SETS, PER_SET = 5, 72
IMAGE, OWN, BOTH = 1.2, 0.7, 0.6  # standard deviations on the logit scale: image, method x image, method x run x image
SPREADS = (0.1, 0.4)  # of the run's own effect: about 1 and 4 points of accuracy
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def expected(mean: np.ndarray | float, spread: float) -> np.ndarray:
    """E sigmoid(mean + spread N(0, 1)), for each mean."""
    return (sigmoid(np.asarray(mean)[..., None] + spread * NODES) * WEIGHTS).sum(-1)


def plain_bootstrap(x: np.ndarray, rng: np.random.Generator, draws: int = 400) -> tuple[float, float]:
    """Percentiles of the hierarchical bootstrap as it is usually done: runs, then images within their test set."""
    runs = len(x)
    taken = rng.multinomial(runs, np.ones(runs) / runs, size=draws) / runs
    weights = np.concatenate([rng.multinomial(PER_SET, np.ones(PER_SET) / PER_SET, size=draws) for _ in range(SETS)], axis=1)
    low, high = np.percentile(np.einsum("bn,bn->b", taken @ x, weights), [2.5, 97.5])
    return float(low), float(high)


def experiment(runs: int, spread: float, effect: float, rng: np.random.Generator) -> dict[str, bool]:
    """One experiment: which intervals hold their truth, which tests reject."""
    n = SETS * PER_SET
    shared, mu = rng.normal(0, IMAGE, n), np.array([1.0 + effect, 1.0])
    own, run = rng.normal(0, OWN, (2, n)), rng.normal(0, spread, (2, runs))
    z = mu[:, None, None] + shared + own[:, None] + run[:, :, None] + rng.normal(0, BOTH, (2, runs, n))
    right = rng.random(z.shape) < sigmoid(z)
    x = 100 * (right[0].astype(float) - right[1]) / n
    within = np.sqrt(IMAGE ** 2 + OWN ** 2 + BOTH ** 2)
    given = 100 * float((expected(mu[0] + run[0], within) - expected(mu[1] + run[1], within)).mean())
    over = float(np.hypot(within, spread))
    new = 100 * float(expected(mu[0], over) - expected(mu[1], over))
    test = image_test(x, np.repeat(np.arange(SETS), PER_SET), draws=1000, seed=int(rng.integers(2 ** 31)))
    student = t_interval(x.sum(axis=1))
    plain = plain_bootstrap(x, rng) if effect else (0.0, 0.0)  # where there is no effect only the tests are asked
    return {"given": test.given[0] <= given <= test.given[1], "new": test.new[0] <= new <= test.new[1],
            "student": student.low <= new <= student.high, "plain": plain[0] <= new <= plain[1],
            "p_given": test.p_given <= 0.05, "p_new": test.p_new <= 0.05}


def main(out: Path, experiments: int = EXPERIMENTS) -> None:
    """Simulate and write the table."""
    rows = []
    for spread in SPREADS:
        for runs in RUNS:
            rng = np.random.default_rng([runs, round(100 * spread)])
            true = [experiment(runs, spread, 0.3, rng) for _ in range(experiments)]
            none = [experiment(runs, spread, 0.0, rng) for _ in range(experiments)]

            def share(found: list[dict[str, bool]], key: str) -> str:
                return f"{100 * np.mean([f[key] for f in found]):.1f}"

            rows.append(f"| {spread} | {runs} | {share(true, 'given')} | {share(true, 'new')} | {share(true, 'plain')} | "
                        f"{share(true, 'student')} | {share(true, 'p_new')} | {share(none, 'p_new')} |")
            print(rows[-1], flush=True)
    noise = 100 * 1.96 * np.sqrt(0.95 * 0.05 / experiments)
    out.write_text("\n".join([
        "# Does inference over test images hold what it says?", "",
        "    python benchmarks/image_inference.py", "",
        f"{experiments:,} synthetic experiments per row with known truth, {SETS} test sets of {PER_SET} images, two methods",
        "that differ by 0.3 on the logit scale (about 4.5 points), except in the last column. Coverage of nominal 95 %",
        "intervals, and how often p <= 0.05, in percent; the simulation's own 95 % range around 95 is "
        f"± {noise:.1f}.", "",
        "| spread of runs (logit) | runs | given these runs: images | over new runs: images and Student's t | plain "
        "hierarchical bootstrap | Student's t over runs alone | mixed permutation finds the difference | ... where there is "
        "none |", "|--:|--:|--:|--:|--:|--:|--:|--:|", *rows, "",
        "*Given these runs* asks whether other images would show the same difference between these trained models. *Over new",
        "runs* asks whether other seeds and other images would: it covers at least what it says, more where the runs differ",
        "less than the images make them seem to, because what runs and images share is counted twice. The plain hierarchical",
        "bootstrap (resampled runs, then resampled images) covers too little with few runs that differ: it is not used.", ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "results" / "compare" / "image_inference.md")
