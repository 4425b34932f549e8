"""What happens beside the steps of a FlowModel: refreshes when they are due, and probes of their own."""

import keras
import numpy as np
import pytest

import tfp_selfnorm as sn
from tfp_selfnorm.inverse_learning import tracking
from tfp_selfnorm.model import refresh


@pytest.fixture
def data(rng):
    return rng.normal(size=[20, 4]).astype(np.float32)


def make_model(num_layers=1, rate=0.0, tracking=sn.Tracking(num_probes=2, refresh_every=5), **options):  # noqa: B008
    flow = sn.dense_flow(4, num_layers=num_layers, activation=None, seed=1)
    model = sn.FlowModel(flow, tracking)
    model.compile(keras.optimizers.SGD(rate), **options)
    return model, sn.self_norm_layers(flow)


@pytest.mark.parametrize(
    ("steps_per_execution", "refreshed"),
    # Executions of three begin at 0, 3, 6, 9, 12, 15 (of one step: the data end) and 16, 19, 22, 25, 28, 31.
    [(1, [0, 5, 10, 15, 20, 25, 30]), (3, [0, 6, 12, 15, 16, 22, 25, 31])],
)
def test_a_refresh_that_falls_into_an_execution_comes_before_it(
    steps_per_execution, refreshed, data, monkeypatch
):
    steps, log_dets = [], []
    model, (layer,) = make_model(rate=1e-2, steps_per_execution=steps_per_execution)
    monkeypatch.setattr(refresh, "refresh_inverse", lambda _: steps.append(int(model._guard.steps)))

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            log_dets.append(float(model._refresh.read(is_training=True)["log_dets"][layer]))

    model.fit(data[:16], batch_size=1, epochs=2, shuffle=False, verbose=0, callbacks=[Watch()])
    # The last one is at the end of `fit`.
    assert steps[:-1] == refreshed
    assert len(set(log_dets)) == len(refreshed)


def test_eager_steps_leave_the_refreshes_to_the_time_between_the_steps(data, monkeypatch):
    """A refresh inside the step is paid twice, and hides the error of the step."""
    model, (layer,) = make_model(rate=0.1, run_eagerly=True)
    compiled, (other,) = make_model(rate=0.1)
    errors = [[], []]
    for _ in range(6):
        for each, figures in zip((model, compiled), errors, strict=True):
            each.reset_metrics()
            figures.append(each.train_on_batch(data, return_dict=True)["inverse_error"])
    assert min(errors[0]) > 0.0
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-3)
    np.testing.assert_allclose(layer.forward_kernel, other.forward_kernel, rtol=1e-4, atol=1e-6)

    def fails(_):
        raise AssertionError("The step refreshes.")

    monkeypatch.setattr(tracking, "refresh_inverse", fails)
    model.fit(data, batch_size=2, verbose=0)


def test_each_layer_and_each_step_has_probes_of_its_own(data):
    """Equal layers that get equal R's have other ones after a step, and others again after the next."""
    model, layers = make_model(num_layers=2)
    model.train_on_batch(data)
    kernel, start = layers[0].inverse_kernel.numpy(), 0.5 * layers[0].forward_kernel.numpy()
    start[0, 1] += 0.3
    results = []
    for _ in range(2):
        for layer in layers:
            layer.inverse_kernel.assign(kernel)
            layer.forward_kernel.assign(start)
        model.train_on_batch(data)
        results += [layer.forward_kernel.numpy() for layer in layers]
    for i, one in enumerate(results):
        assert all(np.abs(one - other).max() > 1e-2 for other in [start, *results[:i]])


def test_an_evaluation_measures_each_layer_by_probes_of_its_own(data):
    model, layers = make_model(num_layers=2)
    for layer in layers:
        layer.forward_kernel.assign(np.diag([0.0, 1.0, 1.0, 1.0]))
        layer.inverse_kernel.assign(np.eye(4))
    estimates = [float(sn.inverse_error(layer, 2, seed=i)) for i, layer in enumerate(layers)]
    assert abs(estimates[0] - estimates[1]) > 0.05
    error = model.evaluate(data, verbose=0, return_dict=True)["inverse_error"]
    np.testing.assert_allclose(error, np.mean(estimates), rtol=1e-5)
