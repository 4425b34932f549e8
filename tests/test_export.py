"""The SavedModel, in processes that have neither this package nor TFP."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

SCORE = """
import sys
for name in ("tfp_selfnorm", "tensorflow_probability", "tf_keras"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
import tensorflow as tf
try:
    import tfp_selfnorm
except ImportError:
    pass
else:
    raise SystemExit("the package was importable")
folder = sys.argv[1]
flow = tf.saved_model.load(folder + "/model")
x = np.load(folder + "/x.npy")
results = {"log_prob": flow.log_prob(x), "one": flow.log_prob(x[:1]), "sample": flow.sample(7, [1, 2])}
if hasattr(flow, "encode"):
    results |= {"encode": flow.encode(x), "decode": flow.decode(flow.encode(x))}
np.savez(folder + "/results.npz", **results)
"""


def dense_flow_of_images():
    return sn.dense_flow((2, 2), preprocessing=sn.images.pixel_sigmoid(4), activation="spline", seed=1)


def conv_flow_of_images():
    pixels = sn.images.pixel_sigmoid(4)
    return sn.conv_flow((4, 4, 1), 2, 1, preprocessing=pixels, activation="spline", seed=1)


def glow_flow_of_images():
    return sn.glow_flow((4, 4, 1), 2, 1, width=4, preprocessing=sn.images.pixel_sigmoid(4), seed=1)


def plain_distribution():
    return tfp.distributions.Independent(
        tfp.distributions.Normal(tf.Variable(tf.ones([2, 2])), 2.0), reinterpreted_batch_ndims=2
    )


@pytest.mark.parametrize(
    "make", [dense_flow_of_images, conv_flow_of_images, glow_flow_of_images, plain_distribution]
)
def test_a_process_without_the_package_gets_the_same(make, tmp_path, rng):
    model = sn.FlowModel(make())
    x = rng.uniform(0.1, 3.9, [50, *model.distribution.event_shape]).astype(np.float32)
    model.adapt(x)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, epochs=2, batch_size=10, verbose=0)
    np.save(tmp_path / "x.npy", x)
    model.export(tmp_path / "model")
    subprocess.run([sys.executable, "-I", "-c", SCORE, str(tmp_path)], check=True)
    results = np.load(tmp_path / "results.npz")
    np.testing.assert_allclose(results["log_prob"], model.log_prob(x), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(results["one"], model.log_prob(x[:1]), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(results["sample"], model.sample(7, seed=(1, 2)), atol=1e-4)
    if make is not plain_distribution:
        np.testing.assert_allclose(results["encode"], model.encode(x), atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(results["decode"], model.reconstruct(x), atol=1e-4)
