"""The callbacks with a ConditionalFlowModel."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.callbacks import ExactLikelihood, InverseQuality, SampleGrid

tfd = tfp.distributions


@pytest.fixture
def data(rng):
    x = rng.normal(size=[40, 3]).astype(np.float32)
    return x, (0.5 * x[:, :2] + 0.3 * rng.normal(size=[40, 2])).astype(np.float32)


def make_model():
    model = sn.ConditionalFlowModel(sn.coupling_flow(2, 3, num_layers=1, num_bins=4, width=8, seed=1))
    model.compile(keras.optimizers.Adam(1e-2))
    return model


def test_exact_likelihood_scores_with_conditions(data):
    x, y = data
    model = make_model()
    likelihood = ExactLikelihood(y, every_steps=10, batch_size=15, condition=x)
    model.fit(x, y, batch_size=20, verbose=0, callbacks=[likelihood, InverseQuality()])
    np.testing.assert_allclose(likelihood.history[-1][1], -np.mean(model.log_prob(y, x)), rtol=1e-5)


def test_a_row_of_samples_for_each_condition(tmp_path):
    """The pixels are the condition: images of a plain level."""
    shift = keras.Sequential([keras.Input([1]), keras.layers.Dense(4, kernel_initializer="zeros")])
    shift.weights[0].assign([[-1.0, -1.0, 0.0, 0.0]])
    flat = sn.AffineCoupling(shift, num_conditioning=0, event_ndims=1)
    base = tfd.Sample(tfd.Normal(0.0, 1e-3), [2])
    bijector = tfp.bijectors.Chain([tfp.bijectors.Reshape([2, 1], [2]), flat])
    model = sn.ConditionalFlowModel(tfd.TransformedDistribution(base, bijector), condition_shape=1)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    condition = np.array([[2.5], [7.5]], np.float32)
    grid = SampleGrid(tmp_path / "grid.png", num_levels=16, num_samples=3, condition=condition)
    model.fit(condition, np.ones([2, 2, 1], np.float32), verbose=0, callbacks=[grid])
    picture = tf.io.decode_png((tmp_path / "grid.png").read_bytes()).numpy()
    # Three images in a row, with lines between them.
    assert picture.shape == (2 * 2 + 1, 3 * 1 + 2, 3)
    np.testing.assert_array_equal(picture[:2, ::2], 2 * 17)
    np.testing.assert_array_equal(picture[3:, ::2], 7 * 17)


def test_conditions_that_are_missing_or_surplus_or_do_not_fit(data, tmp_path):
    x, y = data
    model, plain = make_model(), sn.FlowModel(sn.dense_flow(2, num_layers=1, seed=1))
    plain.compile("adam")
    for condition, message in (
        (None, "`condition` must be the conditions"),
        (x[:7], "one condition an event, 40"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, verbose=0, callbacks=[ExactLikelihood(y, condition=condition)])
    with pytest.raises(ValueError, match="`condition` must be None for FlowModel"):
        plain.fit(y, verbose=0, callbacks=[ExactLikelihood(y, condition=x)])


def network(seed):
    inputs = keras.Input([2]), keras.Input([1])
    hidden = keras.layers.Dense(8, "tanh")(keras.layers.Concatenate()(inputs))
    normal = keras.initializers.RandomNormal(0.0, 0.5, seed=seed)
    change = keras.layers.Dense(2, kernel_initializer=normal)(hidden)
    return keras.Model(inputs, keras.layers.Add()([inputs[0], change]))


def errors_of(bijector, **options):
    """The errors of `InverseQuality` for the model of a bijector."""
    flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), bijector)
    quality = InverseQuality(**options)
    quality.set_model(sn.ConditionalFlowModel(flow, condition_shape=1))
    quality.on_train_begin()
    quality.on_epoch_end(0)
    return quality.errors


def test_the_error_of_a_pair_of_several_conditions_is_the_largest(data):
    keras.utils.set_random_seed(2)
    pair = sn.LearnedInverse(network(1), network(2), 2, name="pair")
    seen = data[0][:, :1]
    for factor in (0.1, 10.0):
        inner = sn.Conditional(pair, embedding=lambda condition, factor=factor: factor * condition)
        for bijectors in ([pair, inner], [inner, pair]):
            errors = errors_of(tfp.bijectors.Chain(bijectors), condition=seen)
            expected = [
                sn.inverse_error(pair, 32, seed=[0, 0], condition=batch) for batch in (seen, factor * seen)
            ]
            np.testing.assert_allclose(errors["pair"], max(expected), rtol=1e-5)


def test_a_pair_that_solves_is_measured_too(data):
    keras.utils.set_random_seed(3)
    pair = sn.LearnedInverse(network(1), network(2), 2, inversion="exact", name="pair")
    errors = errors_of(tfp.bijectors.Invert(pair), condition=data[0][:, :1])
    expected = sn.inverse_error(pair, 32, seed=[0, 0], condition=data[0][:, :1])
    np.testing.assert_allclose(errors["pair"], expected, rtol=1e-5)


def test_few_probes_see_the_whole_range_of_many_conditions():
    keras.utils.set_random_seed(4)
    pair = sn.LearnedInverse(network(1), network(2), 2, name="pair")
    many = np.linspace(-2.0, 2.0, 999, dtype=np.float32)[:, np.newaxis]
    few = np.linspace(-2.0, 2.0, 3, dtype=np.float32)[:, np.newaxis]
    np.testing.assert_allclose(
        errors_of(pair, num_probes=3, condition=many)["pair"],
        errors_of(pair, num_probes=3, condition=few)["pair"],
        rtol=1e-5,
    )


def test_probes_of_pairs_take_the_conditions_that_each_pair_gets(data):
    """Each pair has its own: by an embedding, by another one inside, by `bijector_kwargs`."""
    keras.utils.set_random_seed(1)
    pairs = [sn.LearnedInverse(network(i), network(9), 2, name=f"pair_{i}") for i in range(3)]
    inner = sn.Conditional(pairs[1], embedding=lambda condition: 10.0 * condition)
    flow = tfp.bijectors.Chain([pairs[0], inner, pairs[2]])
    model = sn.ConditionalFlowModel(
        tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), flow),
        condition_shape=1,
        embedding=lambda condition: condition + 1.0,
        bijector_kwargs=lambda condition: {"pair_2": {"condition": -3.0 * condition}},
    )
    quality = InverseQuality(condition=data[0][:, :1])
    quality.set_model(model)
    quality.on_train_begin()
    quality.on_epoch_end(0)
    seen = data[0][:, :1] + 1.0
    for i, condition in enumerate((seen, 10.0 * seen, -3.0 * seen)):
        error = sn.inverse_error(
            pairs[i], 32, seed=[0, list(quality.errors).index(f"pair_{i}")], condition=condition
        )
        np.testing.assert_allclose(quality.errors[f"pair_{i}"], error, rtol=1e-5)
