"""The names that docstring examples may use without importing them; a pytest plugin."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm
from tfp_selfnorm.images import bits_per_dim, dequantize, pixel_sigmoid


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace.update(
        {name: getattr(tfp_selfnorm, name) for name in tfp_selfnorm.__all__},
        math=math,
        np=np,
        tf=tf,
        tfp=tfp,
        tfb=tfp.bijectors,
        tfd=tfp.distributions,
        keras=keras,
        bits_per_dim=bits_per_dim,
        dequantize=dequantize,
        pixel_sigmoid=pixel_sigmoid,
    )
    keras.utils.set_random_seed(1)
