"""Pictures of densities, samples, trainings, learned inverses and posteriors, by matplotlib.

matplotlib is optional: `pip install tfp_selfnorm[plot]`. Each function draws into the axes that you give, or
makes a figure of `matplotlib.pyplot`. None of them shows or saves it, or changes the backend or the style.
"""

from tfp_selfnorm.plot.axes import COLORS, label_lines
from tfp_selfnorm.plot.calibration import calibration, ranks, sbc_ranks
from tfp_selfnorm.plot.curves import learning_curves
from tfp_selfnorm.plot.inverse_errors import inverse_errors
from tfp_selfnorm.plot.marginals import marginals
from tfp_selfnorm.plot.plane import density, images, samples

__all__ = [
    "COLORS",
    "calibration",
    "density",
    "images",
    "inverse_errors",
    "label_lines",
    "learning_curves",
    "marginals",
    "ranks",
    "samples",
    "sbc_ranks",
]
