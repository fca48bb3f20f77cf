"""Statistics for few, paired runs: tests, intervals, effect sizes and ranks, honest about small samples.

Two methods are compared on the pairs (seed, class order) that both have. Every result carries n and the smallest
p-value that n can give, so that "not significant" is never mistaken for "equal". numpy, and scipy only where called.
"""

from __future__ import annotations

from .aggregate import Aggregate, aggregate, interquartile_mean, performance_profile, probability_of_improvement
from .effects import main_effects
from .images import ImageTest, image_test
from .intervals import BOOTSTRAP_FROM, Interval, bca_interval, seeds_to_decide, t_bands, t_interval, t_quantile
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

__all__ = ["BOOTSTRAP_FROM", "Aggregate", "ImageTest", "Interval", "PairedTest", "RankTest", "aggregate", "average_ranks",
           "bca_interval", "cliffs_delta", "cliffs_magnitude", "cliques", "compare_pair", "friedman", "holm", "image_test",
           "indistinguishable_from_best", "interquartile_mean", "main_effects", "nemenyi_critical_difference",
           "nemenyi_p_values", "pair", "performance_profile", "probability_of_improvement", "seeds_to_decide", "sign_flip_test",
           "smallest_p",
           "t_bands", "t_interval", "t_quantile", "wilcoxon_test"]
