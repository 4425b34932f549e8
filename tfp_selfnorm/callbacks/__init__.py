"""Keras callbacks for the training of a `FlowModel`: samples, learned inverses, exact likelihood."""

from tfp_selfnorm.callbacks.exact_likelihood import ExactLikelihood
from tfp_selfnorm.callbacks.inverse_quality import InverseQuality
from tfp_selfnorm.callbacks.sample_grid import SampleGrid

__all__ = ["ExactLikelihood", "InverseQuality", "SampleGrid"]
