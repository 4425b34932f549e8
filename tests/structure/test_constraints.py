"""What is attached to a variable holds in training: a density stays one, and a constraint holds."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


@pytest.fixture(scope="module")
def banana():
    """Points that a masked flow without its masks overfits at once."""
    rng = np.random.default_rng(0)
    a = 2.0 * rng.normal(size=600)
    return np.stack([rng.normal(size=600) + a**2 / 4.0, a], axis=-1).astype(np.float32)


def train(distribution, x, rate=1e-2, epochs=8, **options):
    model = sn.FlowModel(distribution)
    model.compile(keras.optimizers.Adam(rate), **options)
    model.fit(x, batch_size=100, epochs=epochs, verbose=0)
    return model


def mass_in_the_plane(model, side=40.0, count=801):
    grid = np.linspace(-side, side, count, dtype=np.float32)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    return np.exp(np.float64(model.log_prob(points))).sum() * (grid[1] - grid[0]) ** 2


def over_a_normal(bijector):
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), bijector)


def made(**options):
    options = {"hidden_units": [16], "activation": "tanh", **options}
    return tfb.AutoregressiveNetwork(params=2, event_shape=[2], **options)


def masked_flow():
    return over_a_normal(tfb.MaskedAutoregressiveFlow(made()))


def masked_flow_of_three_with_permutations():
    flows = [tfb.MaskedAutoregressiveFlow(made(input_order=order)) for order in ("left-to-right", "random")]
    return over_a_normal(tfb.Chain([flows[0], tfb.Permute([1, 0]), flows[1]]))


def template_flow():
    template = tfb.masked_autoregressive_default_template(hidden_layers=[16], activation=tf.nn.tanh)
    return over_a_normal(tfb.MaskedAutoregressiveFlow(template))


def masked_flow_in_a_closure():
    network = made()
    return over_a_normal(
        tfb.MaskedAutoregressiveFlow(
            lambda y: tf.unstack(network(y), num=2, axis=-1), is_constant_jacobian=False
        )
    )


def masked_flow_by_a_bijector_fn():
    network = made()

    def bijector_fn(y):
        shift, log_scale = tf.unstack(network(y), num=2, axis=-1)
        return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])

    return over_a_normal(tfb.MaskedAutoregressiveFlow(bijector_fn=bijector_fn))


def masked_flow_of_a_subclass():
    class MyFlow(tfb.MaskedAutoregressiveFlow):
        """As in TFP's issues: a class of one's own around a network."""

        def __init__(self):
            super().__init__(made(), name="my_flow")

    return over_a_normal(MyFlow())


MASKED = [
    masked_flow,
    masked_flow_of_three_with_permutations,
    template_flow,
    masked_flow_in_a_closure,
    masked_flow_by_a_bijector_fn,
    masked_flow_of_a_subclass,
]


@pytest.mark.parametrize("make", MASKED)
def test_a_masked_density_in_the_plane_still_integrates_to_one(make, banana):
    model = train(make(), banana)
    np.testing.assert_allclose(mass_in_the_plane(model), 1.0, atol=2e-3)


@pytest.mark.parametrize(
    "options", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}]
)
def test_masks_hold_however_the_step_is_compiled(options, banana):
    model = train(masked_flow(), banana, epochs=2, rate=3e-2, **options)
    np.testing.assert_allclose(mass_in_the_plane(model), 1.0, atol=2e-3)


def test_a_pixel_cnn_sums_to_one_over_all_images():
    tf.keras.utils.set_random_seed(1)
    distribution = tfd.PixelCNN(
        image_shape=(2, 2, 1), num_resnet=1, num_hierarchies=1, num_filters=4, num_logistic_mix=2,
        dropout_p=0.0, low=0, high=2,
    )  # fmt: skip
    images = np.array(list(itertools.product(range(3), repeat=4)), np.float32).reshape(-1, 2, 2, 1)
    rng = np.random.default_rng(1)
    x = images[rng.choice(81, p=rng.dirichlet(np.full(81, 0.1)), size=300)]
    model = train(distribution, x, epochs=4)
    np.testing.assert_allclose(np.exp(np.float64(model.log_prob(images))).sum(), 1.0, atol=1e-4)


def test_the_constraint_of_a_variable_holds(banana):
    """tf.Variable(constraint=...), as TensorFlow documents it; without it the optimum is above 2."""
    scale = tf.Variable([1.0, 1.0], constraint=lambda value: tf.clip_by_value(value, 0.5, 1.5))
    model = train(tfd.MultivariateNormalDiag(tf.Variable(tf.zeros(2)), scale), banana, rate=0.1)
    np.testing.assert_array_equal(scale, [1.5, 1.5])
    assert model.trainable_variables


@pytest.mark.parametrize("in_a_closure", [False, True])
def test_the_constraint_of_a_keras_layer_holds(in_a_closure, banana):
    def train_network(constraint):
        keras.utils.set_random_seed(1)
        network = keras.Sequential([keras.Input([1]), keras.layers.Dense(4, kernel_constraint=constraint)])
        network.add(keras.layers.Dense(2))
        function = (lambda x: network(x)) if in_a_closure else network
        train(over_a_normal(sn.AffineCoupling(function, event_ndims=1)), banana, epochs=2, rate=0.1)
        return network.layers[0].kernel.numpy()

    assert train_network(None).min() < -0.1
    assert train_network("non_neg").min() >= 0.0
    np.testing.assert_allclose(
        np.linalg.norm(train_network(keras.constraints.UnitNorm(axis=1))), 1.0, rtol=1e-5
    )


def test_a_constraint_on_a_kernel_of_ours_holds(banana):
    """A lower triangular W; R follows it all the same."""
    lower = tf.Variable(tf.eye(2), constraint=lambda kernel: tf.linalg.band_part(kernel, -1, 0))
    layer = sn.SelfNormDense(tf.Variable(tf.eye(2)), lower)
    train(over_a_normal(layer), banana)
    assert layer.inverse_kernel[0, 1] == 0.0
    assert layer.inverse_kernel[1, 0] != 0.0
    np.testing.assert_allclose(layer.forward_kernel @ lower, np.eye(2), atol=1e-5)


def test_variables_keep_how_replicas_agree_on_them():
    """Aggregation and synchronization, which Keras passes on to strategies."""
    state = tf.Variable(
        0.0,
        trainable=False,
        aggregation=tf.VariableAggregation.SUM,
        synchronization=tf.VariableSynchronization.ON_WRITE,
        name="state",
    )
    flow = over_a_normal(tfb.Chain([tfb.Shift(state), sn.SelfNormDense.trainable(2)]))
    named = sn.FlowModel(flow).named_variables
    assert (named["state"].aggregation, named["state"].synchronization) == ("sum", "on_write")
    assert named["self_norm_dense_inverse_kernel"].aggregation == "mean"
