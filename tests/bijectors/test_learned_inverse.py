"""`LearnedInverse` inside a scope and outside, with conditions, in a `FlowModel`, and its errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd = tfp.distributions


def network(rng, size, condition_size=0, scale=0.3, dtype="float64"):
    """A residual network with random weights."""
    made = sn.residual_network(size, condition_size, width=6, depth=2, seed=1, dtype=dtype)
    made.set_weights([scale * rng.normal(size=weight.shape) for weight in made.weights])
    return made


def make_layer(rng, size=3, condition_size=0, **options):
    networks = [network(rng, size, condition_size) for _ in range(2)]
    return sn.LearnedInverse(*networks, event_shape=size, **options)


def normal_flow(layer, size):
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(size, tf.float64)), layer)


def numeric_jacobians(function, x, step=1e-6):
    columns = [
        (function(x + step * unit) - function(x - step * unit)) / (2 * step) for unit in np.eye(x.shape[-1])
    ]
    return np.stack(columns, axis=-1)


def outputs_of(keras_network, *conditions):
    def function(x):
        inputs = [tf.constant(x), *map(tf.constant, conditions)]
        return keras_network(inputs if conditions else inputs[0]).numpy()

    return function


@pytest.mark.parametrize("gradient", ["self_norm", "exact"])
def test_each_direction_reports_the_log_det_of_its_own_network(rng, gradient):
    layer, x = make_layer(rng, gradient=gradient), rng.normal(size=[4, 3])
    for log_det, keras_network in (
        (layer.inverse_log_det_jacobian, layer.encoder),
        (layer.forward_log_det_jacobian, layer.decoder),
    ):
        expected = np.linalg.slogdet(numeric_jacobians(outputs_of(keras_network), x))[1]
        np.testing.assert_allclose(log_det(tf.constant(x)), expected, atol=1e-8)


def test_a_pair_keeps_the_log_det_of_the_direction_that_made_it(rng):
    layer, x = make_layer(rng), tf.constant(rng.normal(size=[4, 3]))
    z = layer.inverse(x)
    expected = np.linalg.slogdet(numeric_jacobians(outputs_of(layer.encoder), x.numpy()))[1]
    np.testing.assert_allclose(layer.forward_log_det_jacobian(z), -expected, atol=1e-8)
    y = layer.forward(x)
    expected = np.linalg.slogdet(numeric_jacobians(outputs_of(layer.decoder), x.numpy()))[1]
    np.testing.assert_allclose(layer.inverse_log_det_jacobian(y), -expected, atol=1e-8)


def test_the_exact_copy_inverts_the_encoder(rng):
    layer, x = make_layer(rng), tf.constant(rng.normal(size=[4, 3]))
    exact = sn.exact(layer)
    z = tf.identity(layer.inverse(x))
    np.testing.assert_allclose(exact.forward(z), x, atol=1e-12)
    np.testing.assert_allclose(
        exact.forward_log_det_jacobian(tf.identity(z)), -layer.inverse_log_det_jacobian(x), atol=1e-9
    )
    assert not np.allclose(layer.forward(z), x, atol=1e-3)


def test_an_encoder_without_an_inverse_is_reported(rng):
    layer = sn.LearnedInverse(tf.square, lambda z: z + 1.0, event_shape=2, inversion="exact")
    with pytest.raises(ValueError, match="`forward` of `learned_inverse` has not converged.*residual is"):
        layer.forward(tf.constant([[-1.0, 2.0]]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="has not converged"):
        tf.function(layer.forward)(tf.constant([[-1.0, 2.0]]))


def scope_gradients(layer, flow, x, inverse_learning=None, **options):
    """The surrogate log-density, its gradients, and the scope."""
    variables = layer.trainable_variables
    with tf.GradientTape() as tape, sn.training_scope(inverse_learning, **options) as scope:
        log_prob = flow.log_prob(tf.identity(x))
        total = tf.reduce_mean(log_prob)
    return log_prob, tape.gradient(total, variables, unconnected_gradients="zero"), scope


def test_in_a_scope_the_exact_gradient_is_the_gradient_of_log_prob(rng):
    layer, x = make_layer(rng, gradient="exact"), tf.constant(rng.normal(size=[4, 3]))
    flow = normal_flow(layer, 3)
    log_prob, gradients, _ = scope_gradients(layer, flow, x)
    with tf.GradientTape() as tape:
        expected = flow.log_prob(tf.identity(x))
        total = tf.reduce_mean(expected)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    outside = tape.gradient(total, layer.trainable_variables, unconnected_gradients="zero")
    for found, other in zip(gradients, outside, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-12)


def test_in_a_scope_the_value_is_held_and_the_mean_gradient_is_of_the_learned_inverse(rng):
    layer = make_layer(rng, gradient="self_norm", num_probes=3000)
    x = tf.constant(rng.normal(size=[1, 3]))
    flow = normal_flow(layer, 3)
    log_prob, gradients, _ = scope_gradients(layer, flow, x, log_dets={layer: 0.7}, seed=3)
    z = layer.encoder(x)
    np.testing.assert_allclose(log_prob, flow.distribution.log_prob(z) + 0.7, rtol=1e-7)
    learned = numeric_jacobians(outputs_of(layer.decoder), z.numpy())[0]
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = layer.encoder(x)
        matrix = tape.jacobian(z, x)[0, :, 0, :]
        total = tf.reduce_sum(learned.T * matrix) + tf.reduce_sum(flow.distribution.log_prob(z))
    expected = outer.gradient(total, layer.encoder.trainable_variables)
    found = dict(zip((v.ref() for v in layer.trainable_variables), gradients, strict=True))
    for variable, gradient in zip(layer.encoder.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(found[variable.value.ref()], gradient, atol=0.15)


def test_a_log_det_that_the_scope_does_not_hold_is_exact(rng):
    layer, x = make_layer(rng, gradient="self_norm"), tf.constant(rng.normal(size=[4, 3]))
    flow = normal_flow(layer, 3)
    np.testing.assert_allclose(
        scope_gradients(layer, flow, x, log_dets={})[0], flow.log_prob(tf.identity(x)), rtol=1e-12
    )


@pytest.mark.parametrize("gradient", ["self_norm", "exact"])
@pytest.mark.parametrize("kind", ["data", "symmetric", "inverse_only", "probes"])
def test_the_regularizer_has_the_value_and_trains_what_it_should(rng, gradient, kind):
    layer, x = make_layer(rng, gradient=gradient), rng.normal(size=[4, 3])
    shift = tf.Variable(np.zeros(3))
    reconstruction = sn.Reconstruction(kind, weight=2.0)
    encode, decode = outputs_of(layer.encoder), outputs_of(layer.decoder)
    with tf.GradientTape() as tape, sn.training_scope(reconstruction, seed=5) as scope:
        layer.inverse(tf.constant(x) + shift)
        loss = scope.reconstruction_loss()
    data = np.mean(np.sum((x - decode(encode(x))) ** 2, axis=1))
    z = encode(x)
    latent = np.mean(np.sum((z - encode(decode(z))) ** 2, axis=1))
    expected = {"data": data, "inverse_only": data, "symmetric": 0.5 * (data + latent)}
    if kind in expected:
        np.testing.assert_allclose(loss, 2.0 * expected[kind], rtol=1e-10)
        np.testing.assert_allclose(scope.reconstruction_error(), data, rtol=1e-10)
        np.testing.assert_allclose(
            scope.reconstruction_error(2), np.mean(np.sum((x - decode(encode(x))) ** 2, axis=1)[:2])
        )
    else:
        assert float(loss) > 0.0
    encoder_kernel, decoder_kernel = layer.encoder.weights[0].value, layer.decoder.weights[0].value
    gradients = tape.gradient(loss, [shift, encoder_kernel, decoder_kernel])
    assert gradients[0] is None
    assert gradients[2] is not None
    assert (gradients[1] is None) == (kind == "inverse_only")


def test_conditions_reach_both_networks(rng):
    layer = make_layer(rng, size=2, condition_size=1, gradient="self_norm")
    flow = normal_flow(layer, 2)
    x, c = rng.normal(size=[3, 5, 2]), rng.normal(size=[3, 5, 1])
    arguments = {"bijector_kwargs": {"condition": tf.constant(c)}}
    flat_x, flat_c = x.reshape([15, 2]), c.reshape([15, 1])
    z = outputs_of(layer.encoder, flat_c)(flat_x)
    jacobians = numeric_jacobians(outputs_of(layer.encoder, flat_c), flat_x)
    expected = -0.5 * np.sum(z**2, axis=1) - np.log(2 * np.pi) + np.linalg.slogdet(jacobians)[1]
    found = flow.log_prob(tf.constant(x), **arguments)
    np.testing.assert_allclose(found, expected.reshape([3, 5]), atol=1e-8)
    exact = sn.exact(layer)
    back = exact.forward(tf.constant(z), condition=tf.constant(flat_c))
    np.testing.assert_allclose(back, flat_x, atol=1e-10)

    @tf.function
    def in_a_scope():
        with sn.training_scope(sn.Reconstruction("probes"), seed=1) as scope:
            log_prob = flow.log_prob(tf.constant(x), **arguments)
            return (
                log_prob,
                scope.reconstruction_loss(),
                scope.reconstruction_error(4),
                scope.exact_log_dets(),
            )

    log_prob, loss, error, log_dets = in_a_scope()
    assert np.isfinite([np.mean(log_prob), float(loss)]).all()
    back = outputs_of(layer.decoder, flat_c)(z)
    np.testing.assert_allclose(error, np.mean(np.sum((flat_x - back) ** 2, axis=1)[:4]), rtol=1e-10)
    np.testing.assert_allclose(log_dets[0], np.linalg.slogdet(jacobians)[1].mean(), atol=1e-8)


def test_a_network_that_is_called_twice_has_two_conditions(rng):
    layer = make_layer(rng, size=2, condition_size=1, gradient="self_norm")
    x, values = tf.constant(rng.normal(size=[4, 2])), tf.constant(rng.normal(size=[2, 4, 1]))

    @tf.function
    def surrogates():
        with sn.training_scope(None, log_dets={}):
            z = layer.inverse(x, condition=values[0])
            return z, layer.inverse_log_det_jacobian(x, condition=values[1])

    expected = layer.inverse_log_det_jacobian(tf.identity(x), condition=values[1])
    np.testing.assert_allclose(surrogates()[1], expected, rtol=1e-10)


def test_images_and_other_event_shapes(rng):
    def convolution():
        made = keras.Sequential(
            [
                keras.Input([3, 2, 1], dtype="float64"),
                keras.layers.Conv2D(1, 3, padding="same", dtype="float64"),
            ]
        )
        made.set_weights([rng.normal(size=weight.shape) for weight in made.weights])
        return made

    layer = sn.LearnedInverse(convolution(), convolution(), event_shape=(3, 2, 1))
    x = rng.normal(size=[4, 3, 2, 1])
    encode = outputs_of(layer.encoder)
    jacobians = numeric_jacobians(
        lambda flat: encode(flat.reshape([-1, 3, 2, 1])).reshape([-1, 6]), x.reshape([4, 6])
    )
    np.testing.assert_allclose(
        layer.inverse_log_det_jacobian(tf.constant(x)), np.linalg.slogdet(jacobians)[1], atol=1e-8
    )


def test_inverse_error_is_of_the_jacobians(rng):
    # Of maps that are linear, up to a shift, the error is the one of their matrices.
    first, second = (np.eye(20) + 0.1 * rng.normal(size=[20, 20]).astype(np.float32) for _ in range(2))
    layer = sn.LearnedInverse(lambda y: y @ first.T + 5.0, lambda z: z @ second.T - 3.0, 20)
    errors = [sn.inverse_error(layer, num_probes=8, seed=seed) for seed in range(50)]
    expected = np.linalg.norm(np.eye(20) - first @ second) / np.sqrt(20)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors))), expected, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"encoder": 3}, TypeError, "`encoder` must be callable; got int"),
        (
            {"decoder": keras.Sequential([keras.layers.Dense(2)])},
            ValueError,
            "`decoder` .* no weights yet",
        ),
        ({"event_shape": (None, 2)}, ValueError, "`event_shape` must be positive ints"),
        ({"event_shape": ()}, ValueError, "`event_shape` must be positive ints"),
        ({"gradient": "relative"}, ValueError, "`gradient` must be None or one of"),
        ({"inversion": None}, ValueError, "`inversion` must be one of"),
        ({"num_probes": 0}, ValueError, "`num_probes` must be a positive int"),
        ({"validate_args": 1}, TypeError, "`validate_args` must be"),
        ({"name": 3}, TypeError, "`name` must be a string"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"encoder": tf.identity, "decoder": tf.identity, "event_shape": 2}
    with pytest.raises(error, match=message):
        sn.LearnedInverse(**(arguments | change))


def test_networks_of_two_dtypes_are_refused(rng):
    with pytest.raises(TypeError, match="`encoder` and `decoder` must have one dtype.*float32, float64"):
        sn.LearnedInverse(network(rng, 2), network(rng, 2, dtype="float32"), 2)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda y: y[:, :1], r"The encoder of `odd` must keep the shape and the dtype.*got \(5, 1\) float32"),
        (lambda y: tf.cast(y, tf.float64), r"must keep the shape and the dtype.*got \(5, 2\) float64"),
        (lambda y: y @ 3, "The encoder of `odd`, called without a condition on shapes .*failed"),
    ],
)
def test_networks_that_do_not_keep_events_are_refused(encoder, message):
    layer = sn.LearnedInverse(encoder, tf.identity, 2, name="odd")
    with pytest.raises(ValueError, match=message):
        layer.inverse(tf.zeros([5, 2]))


def test_events_of_another_shape_and_missing_conditions_are_refused(rng):
    layer = make_layer(rng, size=2, condition_size=1)
    x = tf.zeros([5, 2], tf.float64)
    with pytest.raises(ValueError, match=r"`y` of `learned_inverse` has shape \(5, 3\); expected"):
        layer.inverse(tf.zeros([5, 3], tf.float64))
    with pytest.raises(ValueError, match="called without a condition"):
        layer.inverse(x)
    with pytest.raises(ValueError, match="must begin with the sample and batch dimensions"):
        layer.inverse(x, condition=tf.zeros([4, 1], tf.float64))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_a_pair_of_one_condition_is_none_of_another(compiled):
    layer = sn.LearnedInverse(lambda a: a[0] * a[1] + a[0] ** 3, lambda a: a[0] / a[1], 1)

    def log_dets(x):
        y, z = layer.forward(x, condition=2.0 * x), layer.inverse(x, condition=2.0 * x)
        other = 5.0 * x
        return (
            layer.inverse_log_det_jacobian(y, condition=other),
            layer.forward_log_det_jacobian(z, condition=other),
        )

    call = tf.function(log_dets) if compiled else log_dets
    inverse, forward = call(tf.ones([1, 1]))
    # y is 1/2, and the derivative of y c + y^3 is c + 3 y^2; that of z / c is 1 / c.
    np.testing.assert_allclose(inverse, [np.log(5.0 + 0.75)], rtol=1e-6)
    np.testing.assert_allclose(forward, [-np.log(5.0)], rtol=1e-6)


@pytest.mark.parametrize("size", [3, 10])
def test_exact_values_and_gradients_compile_for_xla(rng, size):
    layer, x = make_layer(rng, size=size), tf.constant(rng.normal(size=[4, size]))
    flow = normal_flow(layer, size)

    def results():
        with tf.GradientTape() as tape:
            log_prob = flow.log_prob(tf.identity(x))
        gradients = tape.gradient(log_prob, layer.encoder.trainable_variables)
        return log_prob, gradients, layer.forward_log_det_jacobian(tf.identity(x))

    for found, expected in zip(
        *(tf.nest.flatten(call()) for call in (tf.function(results, jit_compile=True), results)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [3, 10])
def test_empty_batches(rng, size):
    layer = make_layer(rng, size=size)
    flow, signature = normal_flow(layer, size), [tf.TensorSpec([None, size], tf.float64)]
    none = tf.zeros([0, size], tf.float64)
    assert flow.sample(0).shape == (0, size)
    assert flow.log_prob(none).shape == (0,)
    for bijector in (layer, sn.exact(layer)):
        assert tf.function(bijector.forward, input_signature=signature)(none).shape == (0, size)
        for log_det in (bijector.inverse_log_det_jacobian, bijector.forward_log_det_jacobian):
            assert tf.function(log_det, input_signature=signature)(none).shape == (0,)
