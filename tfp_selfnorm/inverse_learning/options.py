"""The ways of learning the inverse, as an argument."""

from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.inverse_learning.tracking import Tracking


def check_inverse_learning(inverse_learning) -> None:
    """Raises TypeError if it is no way of learning the inverse."""
    if inverse_learning is not None and not isinstance(inverse_learning, (Tracking, Reconstruction)):
        raise TypeError(
            f"`inverse_learning` must be a Tracking, a Reconstruction or None; got {inverse_learning!r}."
        )
