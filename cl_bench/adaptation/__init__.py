"""Parts that test-time methods are composed of: base class, norm modes, losses, augmentation, teachers, memories."""

from .augmentation import augment, draw_augmentations, pixel_chunk
from .base import Deployed, Learning, TestTimeMethod
from .losses import (
    contrastive,
    cross_entropy_to,
    entropy,
    generalised_cross_entropy,
    masked_mean,
    projection_head,
    prototype_contrast,
    soft_likelihood_ratio,
    symmetric_cross_entropy,
)
from .memory import CategoryBalancedMemory
from .norm import (
    InstanceAwareNorm,
    MixedNorm,
    RobustNorm,
    batch_statistics,
    convert,
    grouped,
    norm_layers,
)
from .select import all_parameters, norm_parameters, shallow_norm_parameters
from .sharpness import ascend_, put_back_
from .source_statistics import Replay, confidence_threshold, fisher, prototypes, source_batches
from .teacher import augmented_outputs, ema_, stochastic_restore_, teacher_of

__all__ = [
    "CategoryBalancedMemory",
    "Deployed",
    "Learning",
    "InstanceAwareNorm",
    "MixedNorm",
    "Replay",
    "RobustNorm",
    "TestTimeMethod",
    "all_parameters",
    "ascend_",
    "augment",
    "augmented_outputs",
    "batch_statistics",
    "confidence_threshold",
    "contrastive",
    "convert",
    "cross_entropy_to",
    "draw_augmentations",
    "ema_",
    "entropy",
    "fisher",
    "generalised_cross_entropy",
    "grouped",
    "masked_mean",
    "norm_layers",
    "norm_parameters",
    "pixel_chunk",
    "projection_head",
    "prototype_contrast",
    "prototypes",
    "put_back_",
    "shallow_norm_parameters",
    "soft_likelihood_ratio",
    "source_batches",
    "stochastic_restore_",
    "symmetric_cross_entropy",
    "teacher_of",
]
