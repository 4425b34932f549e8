"""What `summary` prints, against numbers of parameters counted by hand."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors


def table(model, **options):
    """The rows, as printed on lines long enough, and the totals."""
    texts = []
    model.summary(line_length=160, print_fn=texts.append, **options)
    (text,) = texts
    cells = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    rows = [(name.rstrip()[1:], *(cell.strip() for cell in others)) for name, *others in cells]
    totals = {
        name: int(number.replace(",", "")) for name, number in re.findall(r"^ (\S+).*: ([\d,]+)$", text, re.M)
    }
    return [(name, shape, *map(count, others)) for name, shape, *others in rows], totals


def count(cell):
    return int(cell.replace(",", "")) if cell.replace(",", "").isdigit() else cell


def test_a_dense_flow():
    """A kernel of 784 x 784 and a bias train, R is tracked; the slope is constant."""
    rows, totals = table(sn.FlowModel(sn.dense_flow(784, num_layers=2, seed=1)))
    assert rows == [
        ("dense_0 (SelfNormDense)", "(784,) → (784,)", 615_440, 614_656),
        ("activation_0 (Invert(SmoothLeakyReLU))", "(784,) → (784,)", 0, 0),
        ("dense_1 (SelfNormDense)", "(784,) → (784,)", 615_440, 614_656),
        ("SampleNormal (Sample of Normal)", "(784,)", 0, 0),
    ]
    # A log-det for each layer, and the counters of the guard.
    assert (totals["Total"], totals["Trainable"], totals["Non-trainable"]) == (
        2_460_192,
        1_230_880,
        1_229_312,
    )
    assert totals["State"] == 5


def test_a_convolutional_flow():
    """3x3 kernels, W and R, of 1 and of 4 channels, which train, R through its regularizer."""
    options = {"num_blocks": 2, "layers_per_block": 1, "centering": False, "gradient": "self_norm"}
    flow = sn.conv_flow((8, 6, 1), seed=1, **options)
    rows, totals = table(sn.FlowModel(flow))
    assert [row[1:] for row in rows if "SelfNormConv2D" in row[0]] == [
        ("(8, 6, 1) → (8, 6, 1)", 9 + 9 + 1, 0),
        ("(4, 3, 4) → (4, 3, 4)", 144 + 144 + 4, 0),
    ]
    assert [row[1] for row in rows if "Squeeze" in row[0]] == ["(8, 6, 1) → (4, 3, 4)"]
    assert (totals["Total"], totals["Trainable"]) == (311, 311)


def test_a_free_form_flow():
    """Each network has two dense layers; the decoder trains by its regularizer, unless there is none."""
    flow = sn.free_form_flow((2, 2), num_layers=1, width=3, depth=1, gradient="self_norm", seed=1)
    network = 4 * 3 + 3 + 3 * 4 + 4
    for learning, trainable in ((sn.Tracking(), 2 * network), (None, network)):
        rows, totals = table(sn.FlowModel(flow, learning), show_trainable=True)
        assert [row[0] for row in rows] == [
            "reshape (Reshape)",
            "dense (SelfNormDense)",
            "learned_inverse_0 (LearnedInverse)",
            "SampleNormal (Sample of Normal)",
        ]
        assert rows[2] == (rows[2][0], "(4,) → (4,)", trainable, 2 * network - trainable, "Y")
        # Without tracking, the likelihood trains both kernels of the dense layer.
        assert totals["Trainable"] == trainable + 4 + (16 if learning else 32)
    (row,) = (
        row for row in table(sn.FlowModel(flow), expand_nested=True)[0] if "encoder_0 (Functional)" in row[0]
    )
    assert row[2] == network


def test_a_glow():
    """Centering has a mean and a flag, ActNorm a shift, a scale and a flag; a network three convolutions
    with biases.
    """
    pixels = sn.images.pixel_sigmoid(17)
    flow = sn.glow_flow(
        (8, 8, 1), num_blocks=2, steps_per_block=1, width=4, split_prior=True, preprocessing=pixels, seed=1
    )
    rows, totals = table(sn.FlowModel(flow), show_trainable=True)
    coupling = (9 * 2 * 4 + 4) + (4 * 4 + 4) + (9 * 4 * 4 + 4)
    later = (9 * 4 * 4 + 4) + (4 * 4 + 4) + (9 * 4 * 8 + 8)
    inner = 8 + 8 + (64 + 8) + later
    assert rows == [
        ("pixel_sigmoid (Sigmoid)", "(8, 8, 1) → (8, 8, 1)", 0, 0, "-"),
        ("centering (Centering)", "(8, 8, 1) → (8, 8, 1)", 64, 1, "Y"),
        ("squeeze (Invert(Squeeze))", "(8, 8, 1) → (4, 4, 4)", 0, 0, "-"),
        ("block_0_step_0_act_norm (ActNorm)", "(4, 4, 4) → (4, 4, 4)", 8, 1, "Y"),
        ("block_0_step_0_mixing (SelfNormConv2D)", "(4, 4, 4) → (4, 4, 4)", 16 + 4, 16, "Y"),
        ("block_0_step_0_coupling (AffineCoupling)", "(4, 4, 4) → (4, 4, 4)", coupling, 0, "Y"),
        ("block_0_prior (AffineCoupling)", "(4, 4, 4) → (4, 4, 4)", coupling, 0, "Y"),
        ("block_0_split (ChannelSplit)", "(4, 4, 4) → (4, 4, 4)", inner, 65, "Y"),
        ("   └ squeeze (Invert(Squeeze))", "(4, 4, 2) → (2, 2, 8)", 0, 0, "-"),
        ("   └ block_1_step_0_act_norm (ActNorm)", "(2, 2, 8) → (2, 2, 8)", 16, 1, "Y"),
        ("   └ block_1_step_0_mixing (SelfNormConv2D)", "(2, 2, 8) → (2, 2, 8)", 72, 64, "Y"),
        ("   └ block_1_step_0_coupling (AffineCoupling)", "(2, 2, 8) → (2, 2, 8)", later, 0, "Y"),
        ("   └ squeeze (Squeeze)", "(2, 2, 8) → (4, 4, 2)", 0, 0, "-"),
        ("SampleNormal (Sample of Normal)", "(4, 4, 4)", 0, 0, "-"),
    ]
    trainable, fixed = 64 + 28 + 2 * coupling + inner, 1 + 17 + 65
    assert (totals["Total"], totals["Trainable"]) == (trainable + fixed, trainable)


def test_nested_chains_inverses_and_shared_variables():
    layer = sn.SelfNormDense.trainable(2, name="shared")
    scale = tf.Variable(2.0)
    chain = tfb.Chain([tfb.Invert(tfb.Chain([tfb.Scale(scale), tfb.Shift(tf.Variable([1.0, 2.0]))])), layer])
    base = tfd.MultivariateNormalDiag(tf.Variable(tf.zeros(2)))
    flow = tfd.TransformedDistribution(base, tfb.Chain([layer, chain, tfb.Scale(scale)]))
    rows, totals = table(sn.FlowModel(tfd.TransformedDistribution(flow, layer)))
    dense = ("shared (SelfNormDense)", "(2,) → (2,)", 6, 4)
    assert rows == [
        dense,
        dense,
        ("shift (Invert(Shift))", "(2,) → (2,)", 2, 0),
        ("scale (Invert(Scale))", "(2,) → (2,)", 1, 0),
        dense,
        ("scale (Scale)", "(2,) → (2,)", 1, 0),
        ("MultivariateNormalDiag (MultivariateNormalDiag)", "(2,)", 2, 0),
    ]
    assert (totals["Total"], totals["Trainable"], totals["Non-trainable"]) == (15, 11, 4)


def test_a_network_that_only_a_function_knows():
    network = keras.Sequential([keras.Input([1]), keras.layers.Dense(4), keras.layers.Dense(2)])
    bijector = tfb.RealNVP(
        1, shift_and_log_scale_fn=lambda x, units, **kwargs: tf.split(network(x), 2, -1), name="nvp"
    )
    flow = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(2)), tfb.Chain([tfb.Scale(tf.Variable(2.0)), bijector])
    )
    rows, totals = table(sn.FlowModel(flow))
    assert [row[2:] for row in rows] == [(1, 0), ((4 + 4) + (8 + 2), 0), (0, 0)]
    assert totals["Total"] == 19


def test_a_distribution_without_a_bijector():
    flow = tfd.Independent(tfd.Normal(tf.Variable(tf.zeros([4, 2])), 1.0), 2)
    rows, totals = table(sn.FlowModel(flow))
    assert rows == [("IndependentNormal (Independent of Normal)", "(4, 2)", 8, 0)]
    assert totals["Total"] == 8


def test_what_is_frozen_and_what_the_optimizer_holds():
    model = sn.FlowModel(sn.dense_flow(3, num_layers=1, seed=1))
    next(v for v in model.variables if "inverse_kernel" in v.name).trainable = False
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    rows, totals = table(model, show_trainable=True)
    assert rows[0][2:] == (3, 18, "Y")
    # Two moments of the bias, the iterations and the rate.
    assert (totals["Trainable"], totals["Non-trainable"], totals["Optimizer"]) == (3, 18, 8)


def test_options(capsys):
    model = sn.FlowModel(sn.glow_flow((4, 4, 1), num_blocks=2, steps_per_block=1, width=2, seed=1))
    own, keras_own = (inspect.signature(c.summary).parameters for c in (sn.FlowModel, keras.Model))
    assert [(p.name, p.default) for p in own.values()] == [(p.name, p.default) for p in keras_own.values()]
    rows, _ = table(model)
    names = [row[0] for row in rows]
    found, _ = table(model, layer_range=("block_0_step_0_mix", "block_0_step_0_c.*"))
    assert [row[0] for row in found] == names[3:5]
    found, _ = table(model, layer_range=["block_0_split", "block_0_split"])
    assert [row[0] for row in found] == [name for name in names if "block_0_split" in name or "└" in name]
    expanded, _ = table(model, expand_nested=True)
    layers = [row for row in expanded if "(Conv2D)" in row[0]]
    assert [row[2] for row in layers[:3]] == [9 * 2 * 2 + 2, 2 * 2 + 2, 9 * 2 * 4 + 4]
    assert [row for row in expanded if row in rows] == rows
    model.summary(line_length=50, positions=[0.4, 0.7, 0.85, 1.0])
    assert max(map(len, capsys.readouterr().out.splitlines())) == 50
    for options, message in (
        ({"positions": [0.5, 1.0]}, "`positions` must be 4 numbers"),
        ({"line_length": 8}, "`line_length` 8 is too small"),
        ({"layer_range": ("nothing", "block.*")}, "matches no bijector; there are"),
        ({"layer_range": "ab"}, None),
        ({"layer_range": [1, 2]}, "`layer_range` must be two names"),
    ):
        with pytest.raises(ValueError, match=message):
            model.summary(**options)


def test_mixtures_have_their_parts_when_expanded():
    parts = [sn.dense_flow(2, num_layers=1, seed=seed, name=f"part_{seed}") for seed in (1, 2)]
    model = sn.FlowModel(tfd.Mixture(tfd.Categorical(logits=tf.Variable(tf.zeros(2))), parts))
    rows, totals = table(model)
    assert [row[2:] for row in rows] == [(2 + 2 * 6, 2 * 4)]
    assert totals["Total"] == 22
    names = [row[0].strip("└ ") for row in table(model, expand_nested=True)[0]]
    assert [name for name in names if name.startswith(("part", "dense"))] == [
        "part_1 (TransformedDistribution)", "dense_0 (SelfNormDense)",
        "part_2 (TransformedDistribution)", "dense_0 (SelfNormDense)",
    ]  # fmt: skip
    assert np.isfinite(model.log_prob(np.zeros([1, 2], np.float32))).all()
