"""The competitors of the paper, as bijectors that are exact in both directions.

They replace the self-normalizing convolution in `conv_flow(layer=...)`, or in any other flow. Two more are
elsewhere: the relative gradient is `SelfNormDense(gradient="relative")`, and Glow's 1x1 convolution by LU
factors is `tfp.bijectors.ScaleMatvecLU`, in `glow_flow(layer="lu")`.
"""

from tfp_selfnorm.baselines.convolution_exponential import ConvolutionExponential2D
from tfp_selfnorm.baselines.emerging_conv import EmergingConv2D

__all__ = ["ConvolutionExponential2D", "EmergingConv2D"]
