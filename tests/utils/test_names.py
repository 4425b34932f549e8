"""Names that TensorFlow refuses in a graph are refused where they come in; file names may be long."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from two_shifts import parts, two_shifts

import tfp_selfnorm as sn
from tfp_selfnorm.utils.names import usable_name

tfb, tfd = tfp.bijectors, tfp.distributions

MAKERS = {
    "dense_flow": lambda name: sn.dense_flow(2, name=name),
    "conv_flow": lambda name: sn.conv_flow((4, 4, 1), num_blocks=1, layers_per_block=1, name=name),
    "free_form_flow": lambda name: sn.free_form_flow(2, num_layers=1, width=2, depth=1, name=name),
    "glow_flow": lambda name: sn.glow_flow((4, 4, 1), num_blocks=1, steps_per_block=1, width=2, name=name),
    "FlowModel": lambda name: sn.FlowModel(two_shifts(), name=name),
    "from_builder": lambda name: sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, name=name),
    "SelfNormDense": lambda name: sn.SelfNormDense(tf.eye(2), tf.eye(2), name=name),
    "SelfNormDense.trainable": lambda name: sn.SelfNormDense.trainable(2, name=name),
    "SelfNormConv1D": lambda name: sn.SelfNormConv1D.trainable(4, 2, name=name),
    "SelfNormConv2D": lambda name: sn.SelfNormConv2D.trainable((4, 4), 2, name=name),
    "EmergingConv2D": lambda name: sn.baselines.EmergingConv2D.trainable((4, 4), 2, name=name),
    "ConvolutionExponential2D": lambda name: sn.baselines.ConvolutionExponential2D.trainable(
        (4, 4), 2, name=name
    ),
    "ActNorm": lambda name: sn.ActNorm.trainable(2, name=name),
    "AffineCoupling": lambda name: sn.AffineCoupling(lambda x: x, name=name),
    "ChannelSplit": lambda name: sn.ChannelSplit(tfb.Exp(), name=name),
    "Squeeze": lambda name: sn.Squeeze(name=name),
    "LearnedInverse": lambda name: sn.LearnedInverse(tf.identity, tf.identity, 2, name=name),
    "LeakyReLU": lambda name: sn.LeakyReLU(name=name),
    "LeakySquareplus": lambda name: sn.LeakySquareplus(name=name),
    "SmoothLeakyReLU": lambda name: sn.SmoothLeakyReLU(name=name),
    "trainable_spline": lambda name: sn.trainable_spline(2, name=name),
    "pixel_sigmoid": lambda name: sn.images.pixel_sigmoid(name=name),
    "coupling_network": lambda name: sn.coupling_network((4, 4, 2), 4, width=2, name=name),
    "residual_network": lambda name: sn.residual_network(2, width=2, depth=1, name=name),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_names_that_no_graph_takes(make):
    for name in ("my flow", "größe", "a:b", "_hidden", "-", "a@b", "a\n"):
        with pytest.raises(ValueError, match="`name` must begin with a letter.*; got"):
            make(name)
    with pytest.raises(TypeError, match="`name` must be a string; got 3"):
        make(3)
    make("Flow.1_a-b")


def test_the_names_that_are_taken_go_all_the_way(tmp_path):
    for i, name in enumerate(["Flow.1_a-b>c", "2nd"]):
        flow = tfd.TransformedDistribution(
            tfd.Sample(tfd.Normal(0.0, 1.0), [2]), sn.SelfNormDense.trainable(2, name=f"a/{name}")
        )
        model = sn.FlowModel(flow, name=name)
        model.compile("adam")
        model.fit(np.ones([4, 2], np.float32), verbose=0)
        model.export(tmp_path / str(i))
        loaded = tf.saved_model.load(tmp_path / str(i))
        np.testing.assert_allclose(
            loaded.log_prob(tf.ones([3, 2])), model.log_prob(tf.ones([3, 2])), rtol=1e-6
        )


@pytest.mark.parametrize(
    ("bijector", "owner"),
    [
        (lambda: tfb.Shift(tf.Variable([0.0]), name="my shift"), " of a Shift"),
        (lambda: tfb.Shift(tf.Variable([0.0], name="my shift")), " of the variable `my shift`"),
        (lambda: tfb.Invert(tfb.Chain([tfb.Shift([0.0], name="a:b")])), " of a Shift"),
    ],
)
def test_export_names_what_is_not_of_this_package(bijector, owner, tmp_path):
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [1]), bijector())
    with pytest.raises(ValueError, match=f"`name`{owner} must begin with"):
        sn.FlowModel(flow).export(tmp_path / "flow")
    assert not list(tmp_path.iterdir())


def test_usable_names():
    assert [usable_name(n) for n in ("my flow", "a:b", "_a", "", "ok")] == [
        "my_flow",
        "a_b",
        "x_a",
        "x",
        "ok",
    ]


@pytest.mark.parametrize("length", [200, 235, 236, 255])
def test_long_file_names(length, tmp_path):
    model = sn.FlowModel.from_builder(two_shifts)
    model.trainable_variables[0].assign([1.0, 2.0])
    whole, weights = (
        tmp_path / ("x" * (length - len(suffix)) + suffix) for suffix in (".keras", ".weights.h5")
    )
    for _ in range(2):
        model.save(whole)
        model.save_weights(weights)
    np.testing.assert_array_equal(parts(keras.models.load_model(whole))["first"], [1.0, 2.0])
    other = sn.FlowModel(two_shifts())
    other.load_weights(weights)
    np.testing.assert_array_equal(parts(other)["first"], [1.0, 2.0])
    model.export(tmp_path / ("x" * length))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("save", "x.h5", "must end in `.keras`; got '.*x.h5'; for weights alone there is `save_weights`"),
        ("save", "x", "must end in `.keras`; got '.*x'"),
        ("save", "x.weights.h5", "must end in `.keras`"),
        ("save_weights", "x", "must end in `.weights.h5`; got '.*x'"),
        ("save_weights", "x.h5", "must end in `.weights.h5`; got"),
        ("save_weights", "x.keras", "must end in `.weights.h5`; got"),
        ("load_weights", "x.h5", "must end in `.weights.h5` or `.keras` or `.weights.json`; got"),
    ],
)
def test_other_suffixes_are_refused_before_anything_is_written(method, path, message, tmp_path):
    model = sn.FlowModel.from_builder(two_shifts)
    for overwrite in (True, False):
        options = {} if method == "load_weights" else {"overwrite": overwrite}
        with pytest.raises(ValueError, match=f"`filepath` {message}"):
            getattr(model, method)(tmp_path / path, **options)
    with pytest.raises(TypeError, match="`filepath` must be a path; got int"):
        getattr(model, method)(3)
    assert not list(tmp_path.iterdir())


def test_an_unzipped_folder_has_no_suffix(tmp_path):
    model = sn.FlowModel.from_builder(two_shifts)
    model.trainable_variables[0].assign([1.0, 2.0])
    model.save(tmp_path / "folder", zipped=False)
    np.testing.assert_array_equal(parts(keras.models.load_model(tmp_path / "folder"))["first"], [1.0, 2.0])
