"""Builders of flows; each returns a plain `tfd.TransformedDistribution`."""

from tfp_selfnorm.flows.autoregressive_flow import autoregressive_flow
from tfp_selfnorm.flows.conv_flow import conv_flow
from tfp_selfnorm.flows.coupling_flow import coupling_flow
from tfp_selfnorm.flows.dense_flow import dense_flow
from tfp_selfnorm.flows.free_form_flow import free_form_flow
from tfp_selfnorm.flows.glow_flow import glow_flow

__all__ = ["autoregressive_flow", "conv_flow", "coupling_flow", "dense_flow", "free_form_flow", "glow_flow"]
