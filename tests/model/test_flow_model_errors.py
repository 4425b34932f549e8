"""Bad input to FlowModel: refused early, and named."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd = tfp.distributions


@pytest.fixture
def model():
    model = sn.FlowModel(sn.dense_flow(3, seed=1))
    model.compile("sgd")
    return model


@pytest.fixture
def data(rng):
    return rng.normal(size=[100, 3]).astype(np.float32)


def weights_of(model):
    return [v.numpy().copy() for v in model.trainable_variables]


@pytest.mark.parametrize("method", ["log_prob", "encode", "reconstruct", "decode", "fit", "evaluate"])
def test_wrong_events(model, method):
    function = getattr(model, method)
    name = "z" if method == "decode" else "x"
    with pytest.raises(
        ValueError, match=rf"`{name}` has shape \(.*, 4\); expected a batch of events of shape \(3,\)"
    ):
        function(np.zeros([5, 4], np.float32))
    with pytest.raises(TypeError, match=f"`{name}` must be floating; got dtype int.*dequantize"):
        function(np.zeros([5, 3], int))


@pytest.mark.parametrize("method", ["log_prob", "encode", "decode"])
def test_wrong_rank(model, method):
    with pytest.raises(ValueError, match=r"has shape \(\); expected a batch of events of shape \(3,\)"):
        getattr(model, method)(1.0)


def test_nan_in_an_array_is_reported_before_training(model, data):
    before = weights_of(model)
    data[41, 2] = np.nan
    data[77, 0] = np.inf
    message = r"`{}` has values that are not finite in 2 of 100 examples, the first at index 41"
    for call, name in (
        (lambda: model.fit(data, verbose=0), "x"),
        (lambda: model.fit(np.zeros_like(data), validation_data=(data,), verbose=0), "validation_data"),
        (lambda: model.evaluate(data, verbose=0), "x"),
        (lambda: model.predict(data, verbose=0), "x"),
    ):
        with pytest.raises(ValueError, match=message.format(name)):
            call()
    for one, other in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_nan_in_a_data_set_is_reported_with_its_batch(data, options, labels):
    model = sn.FlowModel(sn.dense_flow(3, seed=1))
    model.compile("sgd", **options)
    data[41, 2] = np.nan
    elements = (data, np.arange(100)) if labels else data
    dataset = tf.data.Dataset.from_tensor_slices(elements).batch(10)
    for call in (model.fit, model.evaluate, model.predict):
        with pytest.raises(
            ValueError, match=r"`x` has values that are not finite in batch 4 of the data set"
        ):
            call(dataset, verbose=0)
    assert all(np.isfinite(weights).all() for weights in weights_of(model))


def test_nan_in_a_validation_data_set_is_reported_as_such(model, data):
    clean = data.copy()
    data[41, 2] = np.nan
    validation = tf.data.Dataset.from_tensor_slices(data).batch(10)
    with pytest.raises(ValueError, match="`validation_data` has values that are not finite in batch 4"):
        model.fit(clean, validation_data=validation, verbose=0)


def test_a_layer_that_scores_its_learned_inverse_is_refused():
    layer = sn.SelfNormDense.trainable(2, name="turned")
    base = tfd.Sample(tfd.Normal(0.0, 1.0), 2)
    inverted = tfd.TransformedDistribution(base, tfp.bijectors.Invert(layer))
    with pytest.raises(ValueError, match="`turned` maps data to latent by its learned inverse.*Exchange"):
        sn.FlowModel(inverted)
    sn.FlowModel(sn.exact(inverted))


def test_a_broken_kernel_is_named(model, data):
    layer = sn.self_norm_layers(model.distribution)[1]
    for bad in (np.zeros([3, 3]), np.full([3, 3], np.nan)):
        layer.inverse_kernel.assign(bad)
        for method in (model.evaluate, model.predict, model.fit):
            with pytest.raises(ValueError, match=r"`dense_1`.*singular or not finite"):
                method(data, verbose=0)


def test_wrong_distributions():
    with pytest.raises(TypeError, match="`distribution` must be a TFP distribution; got Chain"):
        sn.FlowModel(sn.dense_flow(2).bijector)
    with pytest.raises(TypeError, match="`distribution` must have one floating dtype; got .*int32"):
        sn.FlowModel(tfd.Categorical(logits=[0.0, 1.0]))
    with pytest.raises(TypeError, match="`distribution` must have one floating dtype"):
        sn.FlowModel(tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), tfd.Normal(0.0, 1.0)]))


def test_an_unknown_event_shape():
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def build(loc):
        with pytest.raises(ValueError, match=r"fully defined event shape; got \(None,\)"):
            sn.FlowModel(tfd.MultivariateNormalDiag(loc))
        return loc

    build(tf.zeros(3))


@pytest.mark.parametrize("n", [-1, 1.5, (2, -3), "3"])
def test_wrong_sample_counts(model, n):
    with pytest.raises(ValueError, match="`n` must be an integer or a shape, 0 or more; got"):
        model.sample(n)


def test_a_distribution_without_a_latent():
    model = sn.FlowModel(tfd.Independent(tfd.Normal(tf.Variable(tf.zeros(3)), 1.0), 1))
    for call in (model.encode, model.decode, model.reconstruct):
        with pytest.raises(TypeError, match="Only a tfd.TransformedDistribution has a latent"):
            call(np.zeros([2, 3], np.float32))


def test_own_losses_and_metrics_are_refused(model):
    with pytest.raises(ValueError, match="`loss` must be None"):
        model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="`metrics` must be None"):
        model.compile("sgd", metrics=["mae"])


def test_an_unknown_way_of_learning():
    with pytest.raises(TypeError, match="`inverse_learning` must be"):
        sn.FlowModel(sn.dense_flow(2), "tracking")


def test_a_distribution_of_another_strategy():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    outside = sn.dense_flow(2)
    with strategy.scope(), pytest.raises(ValueError, match=r"`dense_0.*not made under OneDeviceStrategy"):
        sn.FlowModel(outside)
    with strategy.scope():
        inside = sn.dense_flow(2)
        model = sn.FlowModel(inside)
        model.compile(keras.optimizers.SGD(1e-2))
    model.fit(np.zeros([64, 2], np.float32), verbose=0)


def test_export_refuses_a_folder_that_is_not_empty(model, tmp_path):
    (tmp_path / "keep.txt").write_text("precious")
    with pytest.raises(ValueError, match="`filepath` must be an empty or absent folder"):
        model.export(tmp_path)
    with pytest.raises(ValueError, match="`filepath` must be an empty or absent folder"):
        model.export(tmp_path / "keep.txt")
    assert (tmp_path / "keep.txt").read_text() == "precious"


def test_tracking_needs_a_variable():
    layer = sn.SelfNormDense(tf.eye(2), tf.Variable(tf.eye(2)))
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 2), layer)
    with pytest.raises(TypeError, match="`forward_kernel` of `self_norm_dense` must be a tf.Variable"):
        sn.FlowModel(flow)
    sn.FlowModel(flow, sn.Reconstruction())


def test_saving_a_bare_distribution_whole_says_what_to_do_instead(model, tmp_path):
    with pytest.raises(ValueError, match="save its weights with `save_weights`.*or `export` it"):
        model.save(tmp_path / "model.keras")


@pytest.mark.parametrize("kind", [sn.FlowModel, sn.ConditionalFlowModel])
@pytest.mark.parametrize("argument", [2, (8, 8), None])
def test_an_argument_of_the_builder_by_position(kind, argument):
    expected = "by name|`inverse_learning` must be a Tracking.*got .*by name"
    with pytest.raises(TypeError, match="missing" if argument is None else expected):
        kind.from_builder(sn.dense_flow, argument)
