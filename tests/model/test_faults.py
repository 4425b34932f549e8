"""Steps that are not finite: skipped, counted, named, and stopped before they cost anything."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

COMPILED = {"default": {}, "xla": {"jit_compile": True}, "several steps": {"steps_per_execution": 2}}
HUGE = np.float32(1e30)  # finite, and its square is not


@pytest.fixture
def data(rng):
    return rng.normal(size=[60, 3]).astype(np.float32)


def make_model(**options):
    weight = sn.AdaptiveWeight(tolerance=0.1, rate=0.5)
    model = sn.FlowModel(sn.dense_flow(3, seed=1), sn.Reconstruction(weight=weight))
    model.compile(keras.optimizers.Adam(1e-2), **options)
    return model


def fit(model, data, **options):
    return model.fit(data, batch_size=10, shuffle=False, verbose=0, **options).history


def train_on(model, batches):
    for batch in batches:
        model.train_on_batch(batch)


def trained(model):
    """What a step changes: the weights, the state of the optimizer, and that of the regularizer's weight."""
    adaptive = [variable for variable in model.non_trainable_variables if "reconstruction" in variable.name]
    return [v.numpy() for v in (*model.trainable_variables, *model.optimizer.variables, *adaptive)]


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
def test_a_bad_step_is_as_if_it_had_not_been(options, data):
    with_bad, without = make_model(**options), make_model(**options)
    # The bad batches are 2 and 3 of 8.
    bad = np.concatenate([data[:20], np.full([20, 3], HUGE), data[20:]])
    history = fit(with_bad, bad)
    expected = fit(without, data)
    assert history["skipped_updates"] == [2.0]
    assert expected["skipped_updates"] == [0.0]
    for value, other in zip(trained(with_bad), trained(without), strict=True):
        np.testing.assert_array_equal(value, other)
    for figure in ("loss", "nll", "reconstruction"):
        np.testing.assert_allclose(history[figure], expected[figure], rtol=1e-6)


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
def test_training_stops_after_a_run_of_bad_steps_with_the_weights_before_it(options, data):
    model = make_model(max_skipped_updates=4, **options)
    fit(model, data)
    before = trained(model)
    # Two runs of 3, which end, and a run of 5.
    batches = [*[HUGE, HUGE, HUGE, 1] * 2, HUGE, HUGE, HUGE, HUGE, HUGE, 1]
    bad = np.concatenate([np.full([10, 3], HUGE) if batch == HUGE else data[:10] for batch in batches])
    with pytest.raises(
        ValueError, match="4 updates in a row were not finite.*from step 8 on.*log-likelihood"
    ):
        fit(model, bad)
    assert int(model.optimizer.iterations) == 8
    assert any((value != other).any() for value, other in zip(trained(model), before, strict=True))
    assert all(np.isfinite(value).all() for value in trained(model))
    # A new fit begins anew.
    assert np.isfinite(fit(model, data)["nll"]).all()


@pytest.mark.parametrize("clipping", [{}, {"global_clipnorm": 1.0}], ids=["plain", "clipped"])
def test_finite_gradients_whose_squares_are_not_are_kept_out_too(clipping, data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1), sn.Reconstruction())
    model.compile(keras.optimizers.Adam(1e-2, **clipping))
    data[25] = 1e12
    assert fit(model, data)["skipped_updates"] == [1.0]
    assert all(np.isfinite(value).all() for value in trained(model))
    before = trained(model)
    assert fit(model, data[:20])["skipped_updates"] == [0.0]
    assert any((value != other).any() for value, other in zip(trained(model), before, strict=True))


def test_training_by_batches_stops_and_goes_on(data):
    model = make_model(max_skipped_updates=3)
    model.train_on_batch(data)
    with pytest.raises(ValueError, match="3 updates in a row"):
        train_on(model, 9 * [np.full([10, 3], HUGE)])
    before = trained(model)
    model.train_on_batch(data)
    assert any((value != other).any() for value, other in zip(trained(model), before, strict=True))


def test_a_run_goes_on_from_fit_to_fit_and_ends_with_compile(data):
    model = make_model(max_skipped_updates=4)
    bad = np.full([30, 3], HUGE)
    history = fit(model, bad)
    assert history["skipped_updates"] == [3.0]
    assert np.isnan(history["loss"] + history["nll"] + history["reconstruction"]).all()
    with pytest.raises(ValueError, match="4 updates in a row"):
        fit(model, bad)
    fit(model, bad)
    model.compile(keras.optimizers.Adam(1e-2), max_skipped_updates=4)
    fit(model, bad)


def test_a_run_is_not_kept_in_files(data, tmp_path):
    """A backup made in a run would stop each training that begins with it."""
    bad = np.full([30, 3], HUGE)
    model, other = make_model(max_skipped_updates=4), make_model(max_skipped_updates=4)
    fit(model, bad)
    model.save_weights(tmp_path / "flow.weights.h5")
    other.load_weights(tmp_path / "flow.weights.h5")
    assert fit(other, bad)["skipped_updates"] == [3.0]


def nan_from(name):
    """A flow in which the forward pass of a layer, or a gradient, is not finite."""

    @tf.custom_gradient
    def bad_gradient(x):
        return tf.identity(x), lambda upstream: upstream * np.nan

    def identity(x):
        return bad_gradient(x) if name == "gradient" else x

    flow = sn.dense_flow(3, num_layers=3, activation=None, seed=1)
    if name == "kernel":
        flow.bijector.bijectors[1].inverse_kernel[0, 0].assign(np.nan)
        return flow
    bend = tfp.bijectors.Inline(
        forward_fn=identity,
        inverse_fn=identity if name == "gradient" else lambda y: y * np.float32(1e38) * 1e5,
        inverse_log_det_jacobian_fn=lambda y: tf.zeros([], y.dtype),
        forward_min_event_ndims=1,
    )
    layers = flow.bijector.bijectors
    return tfp.distributions.TransformedDistribution(
        flow.distribution, tfp.bijectors.Chain([layers[0], bend, layers[1]])
    )


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("kernel", "`dense_1_inverse_kernel`"),
        ("bend", "the output of `dense_1`"),
        ("gradient", "the gradient of `dense_0_bias`"),
    ],
)
def test_the_first_value_that_is_not_finite_is_named(name, culprit, data):
    model = sn.FlowModel(nan_from(name), sn.Reconstruction(weight=0.0))
    model.compile(keras.optimizers.SGD(1e-3), max_skipped_updates=2)
    weights = model.get_weights()
    # The refresh at step 0 would find the kernel first.
    model._guard.steps.assign(1)
    with pytest.raises(ValueError, match=f"from step 0 on; first to be not finite was {culprit}"):
        keras.Model.fit(model, data, batch_size=10, verbose=0)
    for variable, value in zip(model.trainable_variables, weights, strict=False):
        np.testing.assert_array_equal(variable, value)


def test_the_first_step_of_a_run_names_the_culprit(data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1), sn.Reconstruction())
    model.compile(keras.optimizers.SGD(1e-3), max_skipped_updates=2)
    train_on(model, [data[:10], np.full([10, 3], HUGE), data[:10], np.full([10, 3], HUGE)])
    assert int(model._guard.steps) == 4
    assert int(model.optimizer.iterations) == 2
    model.trainable_variables[0].assign(np.nan * model.trainable_variables[0])
    with pytest.raises(ValueError, match="from step 2 on; first to be not finite was the log-likelihood"):
        train_on(model, 2 * [data[:10]])


def test_a_kernel_that_is_not_finite_is_found_by_the_first_refresh(data):
    model = sn.FlowModel(nan_from("kernel"))
    model.compile("adam")
    with pytest.raises(ValueError, match="`dense_1`.*singular or not finite"):
        fit(model, data)


def test_moving_statistics_are_put_back(rng):
    network = keras.Sequential(
        [keras.Input([1, 1, 1]), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    flow = tfp.distributions.TransformedDistribution(
        tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), [1, 1, 2]), sn.AffineCoupling(network)
    )
    model = sn.FlowModel(flow, None)
    model.compile(keras.optimizers.SGD(1e-2))
    good = rng.normal(size=[10, 1, 1, 2]).astype(np.float32)
    fit(model, good)
    moving = {v.name: v.numpy() for v in model.non_trainable_variables if "moving" in v.name}
    assert len(moving) == 2
    assert fit(model, np.full([10, 1, 1, 2], HUGE))["skipped_updates"] == [1.0]
    for variable in model.non_trainable_variables:
        if variable.name in moving:
            np.testing.assert_array_equal(variable, moving[variable.name])
    fit(model, good)
    assert any((v.numpy() != moving.get(v.name, v.numpy())).any() for v in model.non_trainable_variables)


def test_a_scaled_loss_that_overflows_is_no_fault(data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1), sn.Reconstruction())
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2), initial_scale=3e38)
    model.compile(optimizer, max_skipped_updates=2)
    before = trained(model)
    history = fit(model, np.tile(10.0 * data, [2, 1]))
    assert history["skipped_updates"][0] > 2
    assert float(optimizer.dynamic_scale) < 3e38
    assert np.isfinite(history["nll"]).all()
    assert len(before) == 0 or int(optimizer.iterations) > 0
    assert int(optimizer.iterations) == 12 - history["skipped_updates"][0]


def test_a_bad_batch_under_a_scaled_loss_is_one(data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1), sn.Reconstruction())
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)), max_skipped_updates=2)
    with pytest.raises(ValueError, match="2 updates in a row were not finite"):
        fit(model, np.full([60, 3], HUGE))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_gradient_that_is_bad_without_a_scale_too_is_a_fault(scale, data):
    model = sn.FlowModel(nan_from("gradient"), None)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3), initial_scale=scale)
    model.compile(optimizer, max_skipped_updates=2)
    if scale > 1.0:
        # The first steps are taken for overflows of the scaled loss: 4, 2, 1.
        fit(model, data[:20])
        assert float(optimizer.dynamic_scale) == 1.0
    with pytest.raises(ValueError, match="2 updates in a row were not finite"):
        fit(model, data[:20])


def test_figures_of_an_evaluation_hide_nothing(data):
    model = make_model()
    fit(model, data)
    figures = model.evaluate(np.concatenate([data, np.full([10, 3], HUGE)]), verbose=0, return_dict=True)
    assert not np.isfinite(figures["nll"])
    assert "skipped_updates" not in figures


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_max_skipped_updates_must_be_a_positive_int(value):
    with pytest.raises(ValueError, match="`max_skipped_updates` must be a positive int"):
        make_model(max_skipped_updates=value)


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
def test_a_learning_rate_that_is_not_finite_changes_no_weight(options, data):
    model = make_model(max_skipped_updates=3, **options)
    fit(model, data)
    model.optimizer.learning_rate = np.nan
    before = trained(model)
    with pytest.raises(ValueError, match="3 updates in a row.*first to be not finite was the learning rate"):
        fit(model, data)
    # The rate is a variable of the optimizer.
    for value, other in zip(trained(model), before, strict=True):
        np.testing.assert_array_equal(value, other)


def test_a_schedule_that_becomes_infinite_is_named_too(data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1))
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-3, decay_steps=1, decay_rate=1e20)
    model.compile(keras.optimizers.Adam(schedule), max_skipped_updates=2)
    with pytest.raises(ValueError, match="the learning rate|the log-likelihood|the output"):
        fit(model, data)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.parametrize("size", [3, 300], ids=["small", "fused"])
def test_an_update_that_overflows_stops_the_training_at_once(size, rng):
    """The loss, the gradients and the rate are finite; their product is not."""
    model = sn.FlowModel(sn.dense_flow(size, num_layers=1, seed=1))
    model.compile(keras.optimizers.SGD(3e38), max_skipped_updates=3)
    data = 10.0 + rng.normal(size=[40, size]).astype(np.float32)
    with pytest.raises(ValueError, match="The update of step 0 made `dense_0_bias` not finite, although"):
        fit(model, data)
    assert int(model.optimizer.iterations) == 1


def test_squares_that_overflow_are_to_blame_and_no_finite_weight(data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1))
    model.compile("adam", max_skipped_updates=2)
    with pytest.raises(ValueError, match="not finite was the square of the gradient of `dense_0_inverse"):
        fit(model, 1e18 * data)


def test_a_regularizer_that_overflows_is_named_as_the_loss(data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1), sn.Reconstruction(weight=tf.Variable(np.inf)))
    model.compile("sgd", max_skipped_updates=2)
    layer = sn.self_norm_layers(model.distribution)[0]
    layer.forward_kernel.assign(2.0 * layer.forward_kernel)
    with pytest.raises(ValueError, match="first to be not finite was the loss"):
        fit(model, data)
