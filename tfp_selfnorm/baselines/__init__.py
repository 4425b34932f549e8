"""What the paper compares with, as bijectors that are exact in both directions: alternatives to the
self-normalizing convolution, for `conv_flow(layer=...)` or any other flow.

Two more of them are elsewhere: the relative gradient is `SelfNormDense(gradient="relative")`, and Glow's
1x1 convolution by LU factors is `tfb.ScaleMatvecLU`, in `glow_flow(layer="lu")`.
"""

from tfp_selfnorm.baselines.convolution_exponential import ConvolutionExponential2D
from tfp_selfnorm.baselines.emerging_conv import EmergingConv2D

__all__ = ["ConvolutionExponential2D", "EmergingConv2D"]
