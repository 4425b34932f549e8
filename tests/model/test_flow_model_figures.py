"""The figures that FlowModel reports: true, weighted, exact where they say so."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors


@pytest.fixture
def data(rng):
    return (rng.normal(size=[640, 2]) @ np.array([[1.0, 0.9], [0.0, 0.3]]).T).astype(np.float32)


def test_the_likelihood_of_the_progress_bar_is_the_true_one(data):
    """With a rate of zero every figure must be the exact one, from the first batch on."""
    flow = sn.dense_flow(2, seed=1)
    for variable in flow.trainable_variables:
        variable.assign_add(0.3 * np.random.default_rng(1).normal(size=variable.shape))
    model = sn.FlowModel(flow, sn.Reconstruction(weight=0.5))
    model.compile(keras.optimizers.SGD(0.0))
    # `fit` ends with other kernels R.
    kernels = [
        [v.numpy() for v in (la.inverse_kernel, la.forward_kernel, la.bias)]
        for la in sn.self_norm_layers(flow)
    ]
    history = model.fit(data[:512], epochs=3, validation_data=(data[512:],), verbose=0).history
    expected = {
        "nll": -np.mean(model.log_prob(data[:512])),
        "val_nll": -np.mean(model.log_prob(data[512:])),
    }
    errors = 0.0
    x = data[512:].astype(np.float64)
    for i, (w, r, bias) in enumerate(kernels):
        errors += np.mean(np.sum((x - x @ w.T @ r.T) ** 2, axis=-1))
        x = x @ w.T + bias
        x = 0.3 * x + 0.7 * np.logaddexp(0.0, x) if i == 0 else x
    expected["val_reconstruction"] = errors
    expected["val_loss"] = expected["val_nll"] + 0.5 * errors
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], value, rtol=1e-4)
    np.testing.assert_allclose(
        history["loss"][0], history["nll"][0] + 0.5 * history["reconstruction"][0], rtol=1e-5
    )


def test_evaluate_and_predict_are_exact_whatever_changed_before(data):
    flow = sn.dense_flow(2, seed=1)
    model = sn.FlowModel(flow, bits_per_dim=True)
    model.compile()
    for scale in (2.0, 0.5):
        for layer in sn.self_norm_layers(flow):
            layer.inverse_kernel.assign(scale * tf.eye(2))
        exact = model.log_prob(data)
        results = model.evaluate(data, verbose=0, return_dict=True)
        np.testing.assert_allclose(results["nll"], -np.mean(exact), rtol=1e-5)
        np.testing.assert_allclose(results["bits_per_dim"], results["nll"] / (2 * np.log(2)), rtol=1e-5)
        np.testing.assert_allclose(model.predict(data, verbose=0), exact, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(model.predict_on_batch(data), exact, rtol=1e-4, atol=1e-4)
        batch = model.test_on_batch(data, return_dict=True)
        np.testing.assert_allclose(batch["nll"], -np.mean(exact), rtol=1e-5)
        np.testing.assert_allclose(model(data), exact, rtol=1e-5)


def test_sample_weights_weigh_the_examples(data):
    model = sn.FlowModel(sn.dense_flow(2, seed=1))
    model.compile(keras.optimizers.SGD(0.0))
    weights = (np.arange(len(data)) < 64).astype(np.float32)
    expected = -np.mean(model.log_prob(data[:64]))
    found = {
        "fit": model.fit(data, sample_weight=weights, shuffle=False, verbose=0).history["nll"][0],
        "validation": model.fit(data, validation_data=(data, None, weights), verbose=0).history["val_nll"][0],
        "evaluate": model.evaluate(data, sample_weight=weights, verbose=0, return_dict=True)["nll"],
        "test_on_batch": model.test_on_batch(data, sample_weight=weights, return_dict=True)["nll"],
    }
    columns = tf.data.Dataset.from_tensor_slices((data, weights, weights[:, None])).batch(50)
    found["column"] = model.evaluate(columns, verbose=0, return_dict=True)["nll"]
    for name, nll in found.items():
        np.testing.assert_allclose(nll, expected, rtol=1e-5, err_msg=name)


def test_figures_are_means_over_examples_with_a_partial_batch(data):
    flow = sn.dense_flow(2, seed=1)
    for layer in sn.self_norm_layers(flow):
        layer.forward_kernel.assign(0.5 * tf.eye(2))
    model = sn.FlowModel(flow, sn.Reconstruction())
    model.compile(keras.optimizers.SGD(0.0))
    whole = model.evaluate(data[:33], batch_size=33, verbose=0, return_dict=True)
    for found in (
        model.evaluate(data[:33], batch_size=32, verbose=0, return_dict=True),
        {name: values[0] for name, values in model.fit(data[:33], batch_size=32, verbose=0).history.items()},
    ):
        for name in ("nll", "reconstruction", "loss"):
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-5)


def test_a_distribution_with_a_batch_shape_is_weighted_by_example(data):
    distribution = tfd.Independent(tfd.Normal(tf.Variable(tf.zeros([3, 2])), 1.0), 1)
    model = sn.FlowModel(distribution)
    model.compile("sgd")
    weights = (np.arange(len(data)) < 64).astype(np.float32)
    events = np.repeat(data[:, None], 3, axis=1)
    found = model.test_on_batch(events, sample_weight=weights, return_dict=True)["nll"]
    np.testing.assert_allclose(found, -np.mean(distribution.log_prob(events[:64])), rtol=1e-5)


def test_a_batch_of_kernels_trains_and_evaluates(data):
    kernels = np.tile(np.eye(2, dtype=np.float32), [3, 1, 1])
    layer = sn.SelfNormDense(tf.Variable(kernels), tf.Variable(kernels))
    base = tfd.Sample(tfd.Normal(tf.zeros(3), 1.0), 2)
    for learning in (sn.Tracking(), sn.Reconstruction("probes")):
        model = sn.FlowModel(tfd.TransformedDistribution(base, layer), learning)
        model.compile(keras.optimizers.Adam(1e-2))
        events = np.repeat(data[:, None], 3, axis=1)
        history = model.fit(events, epochs=2, validation_data=(events,), verbose=0).history
        assert history["val_nll"][-1] < history["nll"][0]
        np.testing.assert_allclose(history["val_nll"][-1], -np.mean(model.log_prob(events)), rtol=1e-5)


def test_a_layer_in_control_flow_trains_under_tracking(data):
    layer = sn.SelfNormDense.trainable(2, seed=1)

    class Mapped(tfb.Bijector):
        """Maps each example by itself, in a loop."""

        def __init__(self, inner):
            self._inner = inner
            super().__init__(forward_min_event_ndims=1, parameters={"inner": inner}, dtype=inner.dtype)

        def _inverse(self, y):
            return tf.map_fn(lambda row: self._inner.inverse(tf.identity(row)), y)

        def _forward(self, x):
            return tf.map_fn(lambda row: self._inner.forward(tf.identity(row)), x)

        def _inverse_log_det_jacobian(self, y):
            return self._inner.inverse_log_det_jacobian(tf.identity(y))

    flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), Mapped(layer))
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.Adam(1e-2))
    history = model.fit(data, epochs=2, validation_data=(data,), verbose=0).history
    assert history["val_nll"][-1] < history["nll"][0]
    assert "inverse_error" in history
