"""Keras callbacks that watch a `FlowModel` train: its samples, its learned inverses, its exact likelihood."""

from tfp_selfnorm.callbacks.exact_likelihood import ExactLikelihood
from tfp_selfnorm.callbacks.inverse_quality import InverseQuality
from tfp_selfnorm.callbacks.sample_grid import SampleGrid

__all__ = ["ExactLikelihood", "InverseQuality", "SampleGrid"]
