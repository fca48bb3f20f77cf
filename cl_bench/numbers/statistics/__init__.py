"""Statistics for few, paired runs: tests, intervals, effect sizes and ranks, honest about small samples.

Two methods are compared on the pairs (seed, class order) that both have. Every result carries n and the smallest
p-value that n can give, so that "not significant" is never mistaken for "equal". numpy, and scipy only where called.
"""

from __future__ import annotations

from .images import ImageTest, image_test
from .intervals import BOOTSTRAP_FROM, Interval, bca_interval, seeds_to_decide, t_bands, t_interval
from .paired import (
    PairedTest,
    cliffs_delta,
    cliffs_magnitude,
    compare_pair,
    holm,
    indistinguishable_from_best,
    pair,
    sign_flip_test,
    smallest_p,
    wilcoxon_test,
)
from .ranks import RankTest, average_ranks, cliques, friedman, nemenyi_critical_difference, nemenyi_p_values

__all__ = ["BOOTSTRAP_FROM", "ImageTest", "Interval", "PairedTest", "RankTest", "average_ranks", "bca_interval", "cliffs_delta",
           "cliffs_magnitude", "cliques", "compare_pair", "friedman", "holm", "image_test", "indistinguishable_from_best",
           "nemenyi_critical_difference", "nemenyi_p_values", "pair", "seeds_to_decide", "sign_flip_test", "smallest_p",
           "t_bands", "t_interval", "wilcoxon_test"]
