"""The weight of the regularizer: scheduled, adapted, by layer or whole."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn

Schedule = keras.optimizers.schedules.PolynomialDecay


@pytest.fixture
def data(rng):
    return rng.normal(size=[20, 3]).astype(np.float32)


def fit(weight, data, epochs=6, kind="data", **options):
    """One step an epoch, so that the history has the figures of each step."""
    flow = sn.dense_flow(3, seed=1, **options)
    for layer in sn.self_norm_layers(flow):
        layer.forward_kernel.assign(1.2 * layer.forward_kernel)
    model = sn.FlowModel(flow, sn.Reconstruction(kind, weight))
    model.compile(keras.optimizers.SGD(1e-2))
    history = model.fit(data, epochs=epochs, batch_size=20, shuffle=False, verbose=0).history
    return model, {name: np.array(values) for name, values in history.items()}


def test_a_schedule_gives_the_weight_of_each_step(data):
    schedule = Schedule(0.0, 4, 2.0)
    _, history = fit(schedule, data)
    np.testing.assert_allclose(history["reconstruction_weight"], [0.0, 0.5, 1.0, 1.5, 2.0, 2.0])
    np.testing.assert_allclose(
        history["loss"] - history["nll"],
        history["reconstruction_weight"] * history["reconstruction"],
        atol=1e-5,
    )


def adapted(errors, tolerance, rate, momentum, bounds=(1e-6, 1e6)):
    """The weights at each step, in numpy."""
    weight, average, weights = 1.0, 0.0, []
    for error in errors:
        weights.append(weight)
        average = momentum * average + (1.0 - momentum) * (error - tolerance)
        weight = np.clip(weight * np.exp(rate * average), *bounds)
    return weights


@pytest.mark.parametrize("tolerance", [0.0, 0.2, 50.0])
def test_an_adaptive_weight_follows_the_error_of_all_layers(tolerance, data):
    weight = sn.AdaptiveWeight(tolerance, rate=0.3, momentum=0.8)
    _, history = fit(weight, data)
    expected = adapted(history["reconstruction"], tolerance, 0.3, 0.8)
    assert np.ptp(expected) > 0.02
    np.testing.assert_allclose(history["reconstruction_weight"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        history["loss"] - history["nll"],
        history["reconstruction_weight"] * history["reconstruction"],
        rtol=1e-3,
        atol=1e-4,
    )


def test_each_layer_has_a_weight_of_its_own_in_a_plain_loop_too(data):
    flow = sn.dense_flow(3, seed=1)
    layers = sn.self_norm_layers(flow)
    layers[1].forward_kernel.assign(2.0 * layers[1].forward_kernel)
    options = sn.AdaptiveWeight(0.5, rate=0.5, momentum=0.0, per_layer=True, bounds=(0.9, 3.0))
    reconstruction = sn.Reconstruction(weight=options)
    weights = sn.ReconstructionWeights(reconstruction, layers)
    seen = []
    for step in range(3):
        with sn.training_scope(reconstruction) as scope:
            flow.log_prob(tf.identity(data))
            seen.append([float(value) for value in weights.read(step).values()])
            loss = scope.reconstruction_loss(weights.read(step))
        errors = scope.reconstruction_errors()
        np.testing.assert_allclose(loss, np.dot(seen[-1], list(errors.values())), rtol=1e-6)
        weights.update(errors)
    errors = [float(error) for error in errors.values()]
    assert errors[0] < 0.5 < errors[1]
    expected = [adapted([error] * 3, 0.5, 0.5, 0.0, (0.9, 3.0)) for error in errors]
    np.testing.assert_allclose(np.transpose(seen), expected, rtol=1e-5)
    assert seen[-1] == [pytest.approx(0.9), pytest.approx(3.0)]


def test_a_weight_begins_where_it_is_told_to():
    layer = sn.SelfNormDense.trainable(2)
    for initial in (3.0, 0.01):
        reconstruction = sn.Reconstruction(weight=sn.AdaptiveWeight(0.1, initial=initial))
        weights = sn.ReconstructionWeights(reconstruction, [layer])
        np.testing.assert_allclose(weights.read(0)[layer], initial, rtol=1e-6)


def test_a_step_that_is_not_valid_leaves_the_state():
    layer = sn.SelfNormDense.trainable(2)
    weights = sn.ReconstructionWeights(sn.Reconstruction(weight=sn.AdaptiveWeight(0.0, rate=0.5)), [layer])
    weights.update({layer: tf.constant(2.0)})
    before = float(weights.read(0)[layer])
    assert before > 1.0
    weights.update({layer: tf.constant(np.nan)}, is_valid=tf.constant(False))
    assert float(weights.read(0)[layer]) == before
    weights.update({layer: tf.constant(2.0)})
    assert float(weights.read(0)[layer]) > before


def test_the_error_hovers_about_the_tolerance(data):
    """The self-normalizing gradient pulls R away from the inverse; more weight brings it back."""
    many = np.tile(data, [200, 1])
    _, unweighted = fit(0.0, many, epochs=1)
    tolerance = 0.2 * unweighted["reconstruction"][-1]
    weight = sn.AdaptiveWeight(tolerance, initial=0.01, rate=0.01 / tolerance)
    _, history = fit(weight, many, epochs=8)
    assert history["reconstruction"][0] > 2.0 * tolerance
    assert 0.5 * tolerance < np.mean(history["reconstruction"][2:]) < 1.5 * tolerance


def test_convolutions_under_tracking_have_a_weight_too(rng):
    x = rng.normal(size=[20, 2, 2, 1]).astype(np.float32)
    options = {"num_blocks": 1, "layers_per_block": 1, "centering": False, "gradient": "self_norm"}
    flow = sn.conv_flow((2, 2, 1), seed=1, **options)
    tracking = sn.Tracking(reconstruction=sn.Reconstruction(weight=Schedule(3.0, 2, 1.0)))
    model = sn.FlowModel(flow, tracking)
    model.compile("sgd")
    history = model.fit(x, epochs=3, batch_size=20, verbose=0).history
    assert history["reconstruction_weight"] == [3.0, 2.0, 1.0]


def test_probes_are_the_same_at_the_same_step(data):
    runs = []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        runs.append(fit(1.0, data, epochs=3, kind="probes")[1]["loss"])
    np.testing.assert_array_equal(*runs)
    # The data are the same at each step, and the probes are not.
    model, _ = fit(1.0, data, epochs=1, kind="probes")
    # `fit` ends with the inverse, of which no probe has an error.
    for layer in sn.self_norm_layers(model.distribution):
        layer.forward_kernel.assign(1.1 * layer.forward_kernel)
    model.optimizer.learning_rate = 0.0
    history = model.fit(data, epochs=2, batch_size=20, verbose=0).history
    assert history["loss"][0] != history["loss"][1]
    assert history["nll"][0] == history["nll"][1]


@pytest.mark.parametrize("kind", ["data", "symmetric", "inverse_only"])
def test_no_examples_have_no_error(kind):
    """As those of a replica for which the last batch left none."""
    flow = sn.dense_flow(3, seed=1)
    with tf.GradientTape() as tape, sn.training_scope(sn.Reconstruction(kind)) as scope:
        flow.log_prob(tf.zeros([0, 3]))
        loss = scope.reconstruction_loss()
    assert float(loss) == 0.0
    assert float(scope.reconstruction_error()) == 0.0
    for layer in sn.self_norm_layers(flow):
        np.testing.assert_array_equal(tape.gradient(loss, layer.forward_kernel), np.zeros([3, 3]))
        break


def test_layers_without_an_error_leave_the_adaptation_to_others(data):
    solved = sn.SelfNormDense(tf.Variable(tf.eye(3)), tf.Variable(tf.eye(3)), inversion="exact")
    learned = sn.SelfNormDense.trainable(3)
    for per_layer in (False, True):
        weight = sn.AdaptiveWeight(0.0, rate=0.5, momentum=0.0, per_layer=per_layer)
        weights = sn.ReconstructionWeights(sn.Reconstruction(weight=weight), [solved, learned])
        weights.update({learned: tf.constant(2.0)})
        np.testing.assert_allclose(weights.read(1)[learned], np.exp(1.0), rtol=1e-6)
        np.testing.assert_allclose(weights.read(1)[solved], 1.0 if per_layer else np.exp(1.0), rtol=1e-6)


def test_a_weight_that_depends_on_the_step_must_be_given(data):
    flow = sn.dense_flow(3, seed=1)
    for weight in (Schedule(0.0, 4, 2.0), sn.AdaptiveWeight(0.1)):
        with sn.training_scope(sn.Reconstruction(weight=weight)) as scope:
            flow.log_prob(tf.identity(data))
            with pytest.raises(ValueError, match="depends on the step.*ReconstructionWeights.read"):
                scope.reconstruction_loss()
            assert np.isfinite(scope.reconstruction_loss(2.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -1.0}, "`tolerance` must be 0 or more, and finite; got -1.0"),
        ({"tolerance": np.nan}, "`tolerance` must be 0 or more"),
        ({"tolerance": np.inf}, "`tolerance` must be 0 or more"),
        ({"rate": np.inf}, "`rate` must be positive and finite; got inf"),
        ({"bounds": (1.0, np.inf)}, "`bounds` must be positive and in order"),
        ({"initial": 0.0}, "`initial` must be within"),
        ({"initial": 5.0, "bounds": (1.0, 2.0)}, r"`initial` must be within \(1.0, 2.0\); got 5.0"),
        ({"rate": 0.0}, "`rate` must be positive and finite; got 0.0"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\); got 1.0"),
        ({"bounds": (2.0, 1.0)}, "`bounds` must be positive and in order"),
        ({"bounds": (0.0, 1.0)}, "`bounds` must be positive and in order"),
    ],
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sn.AdaptiveWeight(**{"tolerance": 0.1, **arguments})


@pytest.mark.parametrize("weight", ["1.0", None, [1.0]])
def test_a_weight_of_another_kind_is_refused(weight):
    with pytest.raises(
        TypeError, match="`weight` must be a number, a variable, a function of the step, or an"
    ):
        sn.Reconstruction(weight=weight)


def test_a_weight_that_no_layer_needs_is_no_figure(data):
    """Tracking has a regularizer for convolutions, and here are none."""
    for weight in (sn.AdaptiveWeight(0.1), Schedule(0.0, 4, 2.0)):
        model = sn.FlowModel(
            sn.dense_flow(3, seed=1), sn.Tracking(reconstruction=sn.Reconstruction(weight=weight))
        )
        model.compile("sgd")
        history = model.fit(data, batch_size=20, verbose=0).history
        assert "reconstruction_weight" not in history
        assert not [variable for variable in model.variables if "reconstruction" in variable.name]


@pytest.mark.parametrize("setting", [sn.AdaptiveWeight(tolerance=1.0), sn.Reconstruction(), sn.Tracking()])
def test_settings_do_not_change_and_are_keys(setting):
    for field in dataclasses.fields(setting):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(setting, field.name, getattr(setting, field.name))
    assert {setting: "same"}[dataclasses.replace(setting)] == "same"
