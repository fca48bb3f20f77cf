"""Data sets that fit the contracts, and loaders for the formats this field publishes in."""

from .tensor import TensorData, as_float, batches

__all__ = ["TensorData", "as_float", "batches"]
