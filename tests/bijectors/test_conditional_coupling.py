"""AffineCoupling with a condition: the formulas, TFP's ways of handing it down, and what is remembered."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from contract import log_det
from scipy import stats

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
COUNTED = []


def network(inputs):
    """Shift and h of two channels from two kept ones and a condition of three numbers."""
    COUNTED.append(1)
    kept, condition = inputs
    return tf.concat([tf.sin(kept) + condition[:, :2], kept * condition[:, 1:]], axis=-1)


def numpy_shift_and_log_scale(kept, condition):
    return np.sin(kept) + condition[..., :2], 2.0 * np.tanh(kept * condition[..., 1:] / 2.0)


def numpy_inverse(y, condition):
    """The image of `y` and the log-det."""
    shift, log_scale = numpy_shift_and_log_scale(y[..., :2], condition)
    changed = np.exp(log_scale) * y[..., 2:] + shift
    return np.concatenate([y[..., :2], changed], axis=-1), log_scale.sum(axis=-1)


def coupling_of_vectors(name="coupling"):
    return sn.AffineCoupling(network, event_ndims=1, name=name)


def tensor(rng, *shape):
    return tf.constant(rng.normal(size=shape))


def base(*event):
    return tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), event)


def keras_network(event_shape, condition_shape, num_outputs):
    """A Keras model of two inputs, the condition spread over the image."""
    kept = keras.Input(event_shape, dtype="float64")
    condition = keras.Input(condition_shape, dtype="float64")
    spread = keras.layers.Dense(int(np.prod(event_shape)), dtype="float64")(condition)
    spread = keras.layers.Reshape(event_shape, dtype="float64")(spread)
    merged = keras.layers.Concatenate(dtype="float64")([kept, spread])
    hidden = keras.layers.Conv2D(4, 3, padding="same", activation="tanh", dtype="float64")(merged)
    output = keras.layers.Conv2D(num_outputs, 3, padding="same", dtype="float64")(hidden)
    return keras.Model([kept, condition], output)


@pytest.mark.parametrize("leading", [(), (5,), (3, 5)], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_a_conditional_coupling_is_what_it_says(compiled, leading, rng):
    coupling = coupling_of_vectors()
    y, condition = tensor(rng, *leading, 4), tensor(rng, *leading, 3)
    image, expected = numpy_inverse(y.numpy(), condition.numpy())

    def everything(y, x, condition):
        return (
            coupling.inverse(tf.identity(y), condition=condition),
            coupling.inverse_log_det_jacobian(tf.identity(y), condition=condition),
            coupling.forward(tf.identity(x), condition=condition),
            coupling.forward_log_det_jacobian(tf.identity(x), condition=condition),
        )

    found = (tf.function(everything) if compiled else everything)(y, tf.constant(image), condition)
    for one, other in zip(found, [image, expected, y, -expected], strict=True):
        np.testing.assert_allclose(one, other, **TOLERANCE)
        assert one.shape == other.shape


@pytest.mark.parametrize("direction", ["inverse", "forward"])
def test_the_log_dets_are_those_of_the_jacobian(direction, rng):
    coupling = sn.AffineCoupling(keras_network((3, 2, 1), (5,), 4), num_conditioning=1)
    x, condition = tensor(rng, 4, 3, 2, 3), tensor(rng, 4, 5)
    found = getattr(coupling, f"{direction}_log_det_jacobian")(tf.identity(x), condition=condition)
    assert len(coupling.trainable_variables) == 6
    for i in range(4):

        def image_of(event, i=i):
            conditions = tf.broadcast_to(condition[i], [*event.shape[:-3], 5])
            return getattr(coupling, direction)(event, condition=conditions)

        np.testing.assert_allclose(found[i], log_det(image_of, x[i], 3), **TOLERANCE)
    back = {"inverse": coupling.forward, "forward": coupling.inverse}[direction]
    image = getattr(coupling, direction)(tf.identity(x), condition=condition)
    np.testing.assert_allclose(back(tf.identity(image), condition=condition), x, **TOLERANCE)
    assert np.abs(image - x).max() > 0.1


def test_gradients_reach_the_condition(rng):
    coupling = coupling_of_vectors()
    y, condition = tensor(rng, 5, 4), tensor(rng, 5, 3)
    with tf.GradientTape() as tape:
        tape.watch(condition)
        log_dets = coupling.inverse_log_det_jacobian(y, condition=condition)
    kept = y.numpy()[:, :2]
    slope = kept * (1.0 - np.tanh(kept * condition.numpy()[:, 1:] / 2.0) ** 2)
    expected = np.concatenate([np.zeros([5, 1]), slope], axis=1)
    np.testing.assert_allclose(tape.gradient(log_dets, condition), expected, **TOLERANCE)


@pytest.mark.parametrize("kind", [tf.identity, np.asarray, tf.Variable], ids=["tensor", "array", "variable"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_conditions_from_outside_of_the_function(compiled, kind, rng):
    flow = tfd.TransformedDistribution(base(4), tfb.Chain([coupling_of_vectors()]))
    y, condition = tensor(rng, 5, 4), tensor(rng, 5, 3)
    image, expected = numpy_inverse(y.numpy(), condition.numpy())
    outside = kind(condition)

    def log_prob(y):
        return flow.log_prob(y, bijector_kwargs={"coupling": {"condition": outside}})

    found = (tf.function(log_prob) if compiled else log_prob)(y)
    np.testing.assert_allclose(found, stats.norm.logpdf(image).sum(axis=-1) + expected, **TOLERANCE)


def test_two_conditions_of_one_tensor(rng):
    """Neither what TFP remembers nor what the coupling does may answer for another condition."""
    coupling = coupling_of_vectors()
    y, first, second = tensor(rng, 5, 4), tensor(rng, 5, 3), tensor(rng, 5, 3)

    def everything(y, first, second):
        x = coupling.inverse(y, condition=first)
        results = [coupling.inverse_log_det_jacobian(y, condition=c) for c in (second, first)]
        results += [coupling.forward_log_det_jacobian(x, condition=c) for c in (second, first)]
        results += [coupling.inverse(y, condition=second)[:, 2], x[:, 2]]
        return [*results, coupling.inverse_log_det_jacobian(y, condition=first)]

    (x1, log_det1), (x2, log_det2) = (numpy_inverse(y.numpy(), c.numpy()) for c in (first, second))
    expected = [log_det2, log_det1, -log_det2, -log_det1, x2[:, 2], x1[:, 2], log_det1]
    for function in (everything, tf.function(everything)):
        for one, other in zip(function(y, first, second), expected, strict=True):
            np.testing.assert_allclose(one, other, **TOLERANCE)


def test_a_pair_in_a_graph_costs_one_pass_of_the_network(rng):
    flow = tfd.TransformedDistribution(base(4), coupling_of_vectors())
    y, condition = tensor(rng, 5, 4), tensor(rng, 5, 3)
    del COUNTED[:]
    tf.function(lambda y, c: flow.log_prob(y, bijector_kwargs={"condition": c}))(y, condition)
    assert len(COUNTED) == 1
    tf.function(
        lambda c: flow.experimental_sample_and_log_prob(5, seed=(1, 2), bijector_kwargs={"condition": c})
    )(condition)
    assert len(COUNTED) == 2


def numpy_forward(x, condition):
    shift, log_scale = numpy_shift_and_log_scale(x[..., :2], condition)
    changed = np.exp(-log_scale) * (x[..., 2:] - shift)
    return np.concatenate([x[..., :2], changed], axis=-1), -log_scale.sum(axis=-1)


def numpy_reversed_pair(y, condition):
    """Two couplings with the channels reversed between them."""
    x, first = numpy_inverse(y, condition)
    x, second = numpy_inverse(x[..., ::-1], condition)
    return x, first + second


def numpy_scaled_split(y, condition):
    """A coupling of the first four channels, then twice the value."""
    x, log_det = numpy_inverse(y[..., :4], condition)
    return np.concatenate([2.0 * x, y[..., 4:]], axis=-1), log_det + 4.0 * np.log(2.0)


def reversed_pair():
    return tfb.Chain([coupling_of_vectors(), tfb.Permute([3, 2, 1, 0]), coupling_of_vectors()])


def scaled_split():
    dense = sn.SelfNormDense(0.5 * tf.eye(4, dtype=tf.float64), 2.0 * tf.eye(4, dtype=tf.float64))
    return sn.ChannelSplit(tfb.Chain([coupling_of_vectors(), dense]), num_channels=4, name="split")


COMPOSITIONS = {
    "alone": (coupling_of_vectors, lambda c: {"condition": c}, numpy_inverse),
    "invert": (lambda: tfb.Invert(coupling_of_vectors()), lambda c: {"condition": c}, numpy_forward),
    "chain of one name": (reversed_pair, lambda c: {"coupling": {"condition": c}}, numpy_reversed_pair),
    "chain of an invert": (
        lambda: tfb.Chain([tfb.Invert(coupling_of_vectors(), name="way_back")]),
        lambda c: {"way_back": {"condition": c}},
        numpy_forward,
    ),
    "split of a chain": (scaled_split, lambda c: {"coupling": {"condition": c}}, numpy_scaled_split),
    "chain of a split of a chain": (
        lambda: tfb.Chain([scaled_split()]),
        lambda c: {"split": {"coupling": {"condition": c}}},
        numpy_scaled_split,
    ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_through_what_tfp_composes(compiled, name, rng):
    make, arguments, expected_inverse = COMPOSITIONS[name]
    size = 6 if "split" in name else 4
    flow = tfd.TransformedDistribution(base(size), make())
    y, condition = tensor(rng, 5, size), tensor(rng, 5, 3)

    def both(y, condition):
        log_prob = flow.log_prob(tf.identity(y), bijector_kwargs=arguments(condition))
        return log_prob, flow.sample(5, seed=(1, 2), bijector_kwargs=arguments(condition))

    log_prob, sample = (tf.function(both) if compiled else both)(y, condition)
    x, log_dets = expected_inverse(y.numpy(), condition.numpy())
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(x).sum(axis=-1) + log_dets, **TOLERANCE)
    latents = expected_inverse(sample.numpy(), condition.numpy())[0]
    np.testing.assert_allclose(latents, flow.distribution.sample(5, seed=(1, 2)), **TOLERANCE)


def test_a_loop_of_ones_own_learns_conditional_means(rng):
    """The optimum is known: y2 given y1 and c is normal around `y1 + 2 c - 1` with deviation 0.7."""
    keras.utils.set_random_seed(1)
    kept, condition = keras.Input([1]), keras.Input([1])
    linear = keras.layers.Dense(2, kernel_initializer="zeros")(keras.layers.Concatenate()([kept, condition]))
    coupling = sn.AffineCoupling(keras.Model([kept, condition], linear), event_ndims=1)
    flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), coupling)
    first, c, noise = rng.normal(size=(3, 2000, 1))
    y = tf.constant(np.concatenate([first, first + 2.0 * c - 1.0 + 0.7 * noise], axis=1), tf.float32)
    c = tf.constant(c, tf.float32)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 400))
    variables = coupling.trainable_variables

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow.log_prob(tf.identity(y), bijector_kwargs={"condition": c}))
        optimizer.apply(tape.gradient(loss, variables), variables)

    for _ in range(400):
        step()
    for value in (-1.0, 2.0):
        condition = tf.fill([20_000, 1], value)
        sample = flow.sample(20_000, seed=(1, 2), bijector_kwargs={"condition": condition}).numpy()
        rest = sample[:, 1] - sample[:, 0]
        np.testing.assert_allclose([rest.mean(), rest.std()], [2.0 * value - 1.0, 0.7], atol=0.03)


@pytest.mark.parametrize("shape", [(4, 3), (3,), (), (5, 2, 3)[::-1]], ids=str)
def test_a_condition_of_other_leading_dimensions_is_refused(shape, rng):
    message = r"condition of `coupling` must begin with the sample and batch.*\(5,\); got shape"
    with pytest.raises(ValueError, match=message):
        coupling_of_vectors().inverse(tensor(rng, 5, 4), condition=tensor(rng, *shape))


@pytest.mark.parametrize("shape", [(6, 3), (5,)], ids=str)
@pytest.mark.parametrize("kind", ["coupling", "pair of networks"])
def test_a_condition_with_surplus_dimensions_for_one_event_is_refused(kind, shape, rng):
    """For one event all dimensions of a condition are its own."""
    bijector = sn.AffineCoupling(sn.dense_network(2, 4, 8, 1, 3, dtype="float64"), event_ndims=1)
    if kind != "coupling":
        bijector = sn.LearnedInverse(*(sn.residual_network(4, 3, 8, 1, dtype="float64") for _ in "ab"), 4)
    message = re.escape(f"takes a condition of shape (3,) for each event, and got {shape}")
    for call in (bijector.inverse, bijector.inverse_log_det_jacobian, bijector.forward):
        with pytest.raises(ValueError, match=message):
            call(tensor(rng, 4), condition=tensor(rng, *shape))


def test_a_size_that_is_only_known_later_is_checked_later(rng):
    coupling = coupling_of_vectors()
    inverse = tf.function(
        lambda y, c: coupling.inverse(y, condition=c),
        input_signature=[tf.TensorSpec([None, 4], tf.float64), tf.TensorSpec([None, 3], tf.float64)],
    )
    y, condition = tensor(rng, 5, 4), tensor(rng, 5, 3)
    np.testing.assert_allclose(inverse(y, condition), numpy_inverse(y.numpy(), condition.numpy())[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="must begin with the sample and batch"):
        inverse(y, condition[:1])


@pytest.mark.parametrize("of_keras", [False, True])
def test_labels_are_a_condition(of_keras, rng):
    table = rng.normal(size=(3, 2))
    labels, kept = keras.Input([], dtype="int32"), keras.Input([1], dtype="float64")
    rows = keras.layers.Embedding(3, 2, keras.initializers.Constant(table), dtype="float64")(labels)
    # Keras 3.10 wants each input to play a part.
    rows += 0.0 * kept
    network = keras.Model([kept, labels], rows) if of_keras else lambda inputs: tf.gather(table, inputs[1])
    y, classes = tensor(rng, 4, 2), np.array([2, 0, 1, 2])
    x = sn.AffineCoupling(network, event_ndims=1).inverse(y, condition=classes)
    expected = np.exp(2.0 * np.tanh(table[classes, 1] / 2.0)) * y.numpy()[:, 1] + table[classes, 0]
    np.testing.assert_allclose(x[:, 1], expected, **TOLERANCE)


def test_a_condition_is_cast_to_the_dtype_of_the_events(rng):
    coupling = sn.AffineCoupling(network, event_ndims=1)
    y, condition = tensor(rng, 5, 4), tensor(rng, 5, 3)
    x = coupling.inverse(tf.cast(y, tf.float32), condition=condition)
    np.testing.assert_allclose(x, numpy_inverse(y.numpy(), condition.numpy())[0], rtol=1e-4, atol=1e-5)


def of_one_input(kept):
    return tf.concat([tf.sin(kept), kept], axis=-1)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_networks_with_and_without_a_condition_are_not_mixed_up(compiled, rng):
    one_input = keras.Sequential([keras.Input([2]), keras.layers.Dense(4)])
    two_inputs = keras_network((2, 2, 1), (3,), 2)
    y, condition = tensor(rng, 5, 4), tensor(rng, 5, 3)

    def inverse(network, y, **arguments):
        coupling = sn.AffineCoupling(network, event_ndims=len(y.shape) - 1, name="mixed")
        call = coupling.inverse if not compiled else tf.function(coupling.inverse)
        call(y, **arguments)

    hint = r"(?s:.*)With the argument `condition` the network gets the list `\[events, condition\]`"
    with pytest.raises(ValueError, match="`mixed`, called with a condition" + hint):
        inverse(of_one_input, y, condition=condition)
    with pytest.raises(ValueError, match="`mixed`, called without a condition" + hint):
        inverse(network, y)
    with pytest.raises(
        ValueError, match=r"called with a condition.*failed: it has 1 inputs, and got 2" + hint
    ):
        inverse(one_input, y, condition=condition)
    with pytest.raises(
        ValueError, match=r"called without a condition.*failed: it has 2 inputs, and got 1" + hint
    ):
        inverse(two_inputs, tensor(rng, 5, 2, 2, 2))
