"""Conditional: the condition reaches each part that takes one; the embedding is computed once for a pass."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from contract import check_log_dets
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm.bijectors.pair_memory import keeping_values

tfb, tfd = tfp.bijectors, tfp.distributions
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
COUNTED = []


def shift_and_h(condition):
    """Of both channels, from a condition of two numbers alone."""
    return tf.concat([tf.sin(condition), condition], axis=-1)


def affine(name="affine"):
    return sn.AffineCoupling(shift_and_h, num_conditioning=0, event_ndims=1, name=name)


def numpy_affine(y, condition):
    """The image of `y` and the log-det."""
    log_scale = 2.0 * np.tanh(condition / 2.0)
    return np.exp(log_scale) * y + np.sin(condition), log_scale.sum(axis=-1)


def coupling(name="coupling"):
    """Changes the second channel by the first and the condition."""
    return sn.AffineCoupling(
        lambda inputs: tf.concat([inputs[0] + inputs[1][:, :1], inputs[0] * inputs[1][:, 1:]], axis=-1),
        event_ndims=1,
        name=name,
    )


def tensor(rng, *shape):
    return tf.constant(rng.normal(size=shape))


def base(*event):
    return tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), event)


def counting(condition):
    COUNTED.append(1)
    return tf.sin(condition) @ tf.ones([3, 2], condition.dtype)


def everything(bijector, y, x, condition):
    return (
        bijector.inverse(tf.identity(y), condition=condition),
        bijector.inverse_log_det_jacobian(tf.identity(y), condition=condition),
        bijector.forward(tf.identity(x), condition=condition),
        bijector.forward_log_det_jacobian(tf.identity(x), condition=condition),
    )


@pytest.mark.parametrize("leading", [(), (5,), (3, 5)], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_a_scale_and_shift_by_the_condition_is_the_formula(compiled, leading, rng):
    bijector = sn.Conditional(tfb.Chain([tfb.Scale(tf.constant(2.0, tf.float64)), affine()]))
    y, condition = tensor(rng, *leading, 2), tensor(rng, *leading, 2)
    image, log_det = numpy_affine(y.numpy() / 2.0, condition.numpy())
    log_det -= 2.0 * np.log(2.0)
    function = tf.function(everything) if compiled else everything
    found = function(bijector, y, tf.constant(image), condition)
    for one, other in zip(found, [image, log_det, y, -log_det], strict=True):
        np.testing.assert_allclose(one, other, **TOLERANCE)
        assert one.shape == other.shape


def test_log_dets_are_those_of_the_jacobians(rng):
    bijector = sn.Conditional(tfb.Chain([coupling(), tfb.Permute([1, 0]), affine(), coupling("other")]))
    condition = tensor(rng, 2)

    class Fixed:
        """The bijector at one condition."""

        def __getattr__(self, name):
            return lambda x, *ndims: getattr(bijector, name)(x, *ndims, condition=condition)

    check_log_dets(Fixed(), tensor(rng, 3, 2), tensor(rng, 3, 2), 1, TOLERANCE)


def doubled():
    return tfb.Scale(2.0)


def joint(part):
    split = tfb.Split([2, 1])
    return tfb.Chain([tfb.Invert(split), tfb.JointMap([part, doubled()]), split])


# Functions of a bijector of two channels, and the number of channels of the result.
WRAPPERS = {
    "alone": (lambda part: part, 2),
    "chain": (lambda part: tfb.Chain([part]), 2),
    "chains": (lambda part: tfb.Chain([tfb.Chain([part, doubled()], name="inner"), tfb.Identity()]), 2),
    "invert": (tfb.Invert, 2),
    "invert of a chain": (lambda part: tfb.Invert(tfb.Chain([doubled(), part])), 2),
    "split": (lambda part: sn.ChannelSplit(part, num_channels=2), 3),
    "blockwise": (lambda part: tfb.Blockwise([part, doubled()], block_sizes=[2, 1]), 3),
    "joint map": (joint, 3),
    "conditional": (sn.Conditional, 2),
}


@pytest.mark.parametrize(("wrap", "size"), WRAPPERS.values(), ids=WRAPPERS.keys())
def test_the_condition_reaches_a_part_in_any_wrapper(wrap, size, rng):
    bijector = sn.Conditional(wrap(affine()))
    y, one, other = (tf.cast(tensor(rng, 5, n), tf.float32) for n in (size, 2, 2))
    assert not np.allclose(
        bijector.inverse_log_det_jacobian(y, 1, condition=one),
        bijector.inverse_log_det_jacobian(y, 1, condition=other),
    )
    back = bijector.forward(tf.identity(bijector.inverse(y, condition=one)), condition=one)
    np.testing.assert_allclose(back, y, rtol=1e-4, atol=1e-4)


def test_the_density_of_a_transformed_distribution(rng):
    flow = tfd.TransformedDistribution(base(2), sn.Conditional(affine()))
    y, condition = tensor(rng, 5, 2), tensor(rng, 5, 2)
    image, log_det = numpy_affine(y.numpy(), condition.numpy())
    expected = stats.norm.logpdf(image).sum(axis=-1) + log_det
    arguments = {"bijector_kwargs": {"condition": condition}}
    np.testing.assert_allclose(flow.log_prob(tf.identity(y), **arguments), expected, **TOLERANCE)
    samples = flow.sample([4, 5], seed=1, **arguments)
    assert samples.shape == [4, 5, 2]
    # A condition is repeated for the shape of samples, and one alone for a batch.
    densities = flow.log_prob(tf.identity(samples), **arguments)
    for i in range(4):
        np.testing.assert_allclose(
            flow.log_prob(tf.identity(samples[i]), **arguments), densities[i], **TOLERANCE
        )
    alone = {"bijector_kwargs": {"condition": condition[0]}}
    np.testing.assert_allclose(
        flow.log_prob(tf.identity(y), **alone)[0], flow.log_prob(tf.identity(y), **arguments)[0], **TOLERANCE
    )


def test_a_change_of_rank(rng):
    bijector = sn.Conditional(tfb.Chain([tfb.Reshape([2, 1], [2]), affine()]))
    y = tensor(rng, 5, 2, 1)
    assert bijector.inverse(y, condition=y[..., 0]).shape == [5, 2]
    assert bijector.forward_event_shape([2]) == [2, 1]
    assert bijector.inverse_event_shape([2, 1]) == [2]
    flow = tfd.TransformedDistribution(base(2), bijector)
    assert flow.event_shape == [2, 1]
    assert flow.sample([3, 5], seed=1, bijector_kwargs={"condition": y[..., 0]}).shape == [3, 5, 2, 1]


@pytest.mark.parametrize("mode", ["graph", "keeping values"])
def test_an_embedding_is_computed_once_for_a_pass(mode, rng):
    flow = tfd.TransformedDistribution(
        base(2), sn.Conditional(tfb.Chain([affine(), affine("other")]), embedding=counting)
    )
    y, condition = tensor(rng, 5, 2), tensor(rng, 5, 3)
    expected = flow.log_prob(tf.identity(y), bijector_kwargs={"condition": condition})

    def log_prob(y, condition):
        COUNTED.clear()
        return flow.log_prob(tf.identity(y), bijector_kwargs={"condition": condition})

    if mode == "graph":
        found = tf.function(log_prob)(y, condition)
    else:
        with keeping_values():
            found = log_prob(y, condition)
    assert len(COUNTED) == 1
    np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_another_condition_for_the_same_events_is_no_memory(rng):
    flow = tfd.TransformedDistribution(base(2), sn.Conditional(affine(), embedding=counting))
    y, one, other = tensor(rng, 5, 2), tensor(rng, 5, 3), tensor(rng, 5, 3)

    @tf.function
    def both(y, one, other):
        bijector = flow.bijector
        bijector.inverse(y, condition=one)
        return bijector.inverse_log_det_jacobian(y, condition=other)

    expected = flow.bijector.inverse_log_det_jacobian(tf.identity(y), condition=other)
    np.testing.assert_allclose(both(y, one, other), expected, **TOLERANCE)
    with keeping_values():
        flow.bijector.inverse(y, condition=one)
        np.testing.assert_allclose(
            flow.bijector.inverse_log_det_jacobian(y, condition=other), expected, **TOLERANCE
        )


@pytest.mark.parametrize("mode", ["eager", "graph", "condition of eager code in a graph"])
@pytest.mark.parametrize("embedding", [None, counting], ids=["none", "embedding"])
def test_a_density_has_the_log_det_of_w(embedding, mode, make_layer, rng):
    """R is far from the inverse. The map from data to latent counts, whichever end of a pair TFP asks at."""
    layers = [make_layer(2, name=f"layer_{i}") for i in range(2)]
    chain = tfb.Chain([layers[0], affine(), layers[1], affine("other")])
    flow = tfd.TransformedDistribution(base(2), sn.Conditional(chain, embedding))
    y, condition = tensor(rng, 5, 2), tensor(rng, 5, 3 if embedding else 2)
    embedded = (condition if embedding is None else embedding(condition)).numpy()
    x, expected = y.numpy(), 0.0
    for layer in layers:
        kernel = layer.inverse_kernel.numpy()
        x, log_det = numpy_affine(x @ kernel.T + layer.bias, embedded)
        expected += np.linalg.slogdet(kernel)[1] + log_det
    expected += stats.norm.logpdf(x).sum(axis=-1)

    def log_prob(y, condition):
        return flow.log_prob(tf.identity(y), bijector_kwargs={"condition": condition})

    if mode == "eager":
        found = log_prob(y, condition)
    elif mode == "graph":
        found = tf.function(log_prob)(y, condition)
    else:
        found = tf.function(lambda y: log_prob(y, condition))(y)
    np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_in_a_scope_each_layer_passes_once(compiled, make_layer, rng):
    chain = tfb.Chain([make_layer(2, name="one"), affine(), make_layer(2, name="two")])
    flow = tfd.TransformedDistribution(base(2), sn.Conditional(chain, counting))
    y, condition = tensor(rng, 5, 2), tensor(rng, 5, 3)

    def passes(y, condition):
        with sn.training_scope() as scope:
            flow.log_prob(tf.identity(y), bijector_kwargs={"condition": condition})
        return len(scope.passes)

    assert (tf.function(passes) if compiled else passes)(y, condition) == 2


def test_a_pair_of_another_condition_is_another_pair(make_layer, rng):
    """Also for a `LearnedInverse`: a latent for one condition is no latent for another one."""
    layer = make_layer(2)
    bijector = sn.Conditional(tfb.Chain([layer, affine()]))
    y, one, other = tensor(rng, 5, 2), tensor(rng, 5, 2), tensor(rng, 5, 2)
    x = bijector.inverse(y, condition=one)
    log_det = bijector.forward_log_det_jacobian(x, 1, condition=other)
    fresh = bijector.forward_log_det_jacobian(tf.identity(x), 1, condition=other)
    np.testing.assert_allclose(log_det, fresh, **TOLERANCE)
    nets = [lambda parts, sign=sign: parts[0] + 0.1 * sign * tf.sin(parts[0] * parts[1]) for sign in (1, -1)]
    learned = sn.LearnedInverse(*nets, event_shape=2)
    x = learned.inverse(y, condition=one)
    np.testing.assert_allclose(
        learned.forward_log_det_jacobian(x, 1, condition=other),
        learned.forward_log_det_jacobian(tf.identity(x), 1, condition=other),
        **TOLERANCE,
    )


def test_an_embedding_of_keras_trains(rng):
    embedding = keras.Sequential([keras.Input([3], dtype="float64"), keras.layers.Dense(2, dtype="float64")])
    flow = tfd.TransformedDistribution(base(2), sn.Conditional(affine(), embedding))
    y, condition = tensor(rng, 5, 2), tensor(rng, 5, 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(flow.log_prob(y, bijector_kwargs={"condition": condition}))
    assert len(flow.trainable_variables) == 2
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, flow.trainable_variables))


def test_an_embedding_of_several_inputs(rng):
    def embedding(condition):
        return condition["numbers"] + tf.cast(condition["label"], tf.float64)[:, tf.newaxis]

    bijector = sn.Conditional(affine(), embedding, condition_ndims={"label": 0, "numbers": 1})
    y, numbers, label = tensor(rng, 4, 5, 2), tensor(rng, 5, 2), tf.range(5)
    found = bijector.inverse(y, condition={"label": label, "numbers": numbers})
    expected, _ = numpy_affine(y.numpy(), numbers.numpy() + label.numpy()[:, np.newaxis])
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    with pytest.raises(ValueError, match="structure of `condition_ndims`"):
        bijector.inverse(y, condition=numbers)


def test_arguments_of_a_layer_of_tfp(rng):
    made = tfb.AutoregressiveNetwork(
        params=2, event_shape=[2], conditional=True, conditional_event_shape=[3], hidden_units=[4]
    )
    maf = tfb.MaskedAutoregressiveFlow(made, name="maf")
    calls = []

    def arguments(condition):
        calls.append(1)
        # A new tensor at each call.
        return {"maf": {"conditional_input": 2.0 * condition}}

    bijector = sn.Conditional(tfb.Chain([maf]), bijector_kwargs=arguments)
    y, condition = (tf.cast(tensor(rng, 5, size), tf.float32) for size in (2, 3))
    expected = maf.inverse_log_det_jacobian(tf.identity(y), 1, conditional_input=2.0 * condition)
    np.testing.assert_allclose(
        bijector.inverse_log_det_jacobian(y, 1, condition=condition), expected, rtol=1e-5
    )
    calls.clear()
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), bijector)
    with keeping_values():
        flow.log_prob(tf.identity(y), bijector_kwargs={"condition": condition})
    assert len(calls) == 1


def test_a_copy_shares_the_variables_and_exact_finds_the_layers(rng):
    layer = sn.SelfNormDense.trainable(2, dtype=tf.float64, seed=1)
    flow = tfd.TransformedDistribution(base(2), sn.Conditional(tfb.Chain([layer, affine()])))
    assert sn.self_norm_layers(flow)[0] is layer
    exact = sn.exact(flow)
    assert sn.self_norm_layers(exact)[0].inversion == "exact"
    y = tensor(rng, 5, 2)
    arguments = {"bijector_kwargs": {"condition": y}}
    np.testing.assert_allclose(
        flow.log_prob(tf.identity(y), **arguments), exact.log_prob(y, **arguments), **TOLERANCE
    )


def test_parts_of_one_name_may_get_the_same(rng):
    bijector = sn.Conditional(tfb.Chain([affine("a"), affine("a")]))
    y = tensor(rng, 5, 2)
    once, _ = numpy_affine(y.numpy(), y.numpy())
    np.testing.assert_allclose(
        bijector.inverse(y, condition=y), numpy_affine(once, y.numpy())[0], **TOLERANCE
    )
