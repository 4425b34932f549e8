"""Small models of every builder, and their trainings, for `keras_life.py`."""

import keras
import numpy as np

import tfp_selfnorm as sn

BUILDERS = {
    "dense_flow": (sn.dense_flow, {"event_shape": (4, 4, 1)}),
    "conv_flow": (
        sn.conv_flow,
        {"image_shape": (4, 4, 1), "num_blocks": 2, "layers_per_block": 1, "gradient": "self_norm"},
    ),
    "glow_flow": (sn.glow_flow, {"image_shape": (4, 4, 1), "steps_per_block": 1, "width": 4}),
    "glow_flow, lu": (
        sn.glow_flow,
        {"image_shape": (4, 4, 1), "steps_per_block": 1, "width": 4, "layer": "lu"},
    ),
    "conv_flow, circulant": (
        sn.conv_flow,
        {"image_shape": (4, 4, 1), "num_blocks": 2, "layers_per_block": 1, "gradient": "circulant"},
    ),
    "free_form_flow": (sn.free_form_flow, {"event_shape": (4, 4, 1), "width": 8, "depth": 1}),
    "free_form_flow, exact": (
        sn.free_form_flow,
        {"event_shape": (4, 4, 1), "width": 8, "depth": 1, "gradient": "exact"},
    ),
    "coupling_flow, conditions": (
        sn.coupling_flow,
        {"event_shape": (4, 4, 1), "condition_shape": 3, "num_layers": 2, "num_bins": 4, "width": 8},
    ),
    "autoregressive_flow, conditions": (
        sn.autoregressive_flow,
        {"event_shape": (4, 4, 1), "condition_shape": 3, "num_layers": 1, "num_bins": 4, "width": 16},
    ),
}
# The probes are other ones in two batches of half the size, or under XLA; the gradient depends on them.
HAS_PROBES = ("free_form_flow",)
BATCH, EPOCHS = 10, 3


def images():
    return np.random.default_rng(0).uniform(0.1, 3.9, [4 * BATCH, 4, 4, 1]).astype(np.float32)


def conditions(data):
    """Two pixels of each image."""
    return data[:, 0, :2, 0]


def given(model, data):
    """The arguments after the events: the conditions, if the model has them."""
    return () if model.conditions is None else (conditions(data),)


def log_prob(model, data):
    return model.log_prob(data, *given(model, data))


def make_model(builder, seed=1, flow=(), **options):
    """A small compiled model, started from the images; `flow` has more arguments of the builder."""
    function, arguments = BUILDERS[builder]
    pixels = sn.images.pixel_sigmoid(num_levels=4)
    weight = sn.AdaptiveWeight(tolerance=0.01, rate=0.1)
    # Not a divisor of the steps of an epoch, so that it matters where a training goes on.
    learning = sn.Tracking(refresh_every=5, reconstruction=sn.Reconstruction(weight=weight))
    arguments = {**arguments, **dict(flow), "preprocessing": pixels, "seed": seed}
    kind = sn.FlowModel
    if "condition_shape" in arguments:
        # Made anew, as the flow is: a model owns its embedding.
        initializer = keras.initializers.GlorotUniform(seed=seed)
        layers = [keras.Input([2]), keras.layers.Dense(3, "tanh", kernel_initializer=initializer)]
        kind, arguments["embedding"] = sn.ConditionalFlowModel, keras.Sequential(layers)
    model = kind.from_builder(function, learning, **arguments)
    if not sn.is_adapted(model.distribution):
        model.adapt(*given(model, images()), images())
    model.compile(keras.optimizers.Adam(1e-2), **options)
    return model


def images_with_a_fault():
    """The last image of the second batch has no density; of two replicas one sees it, and both skip."""
    data = images()
    data[2 * BATCH - 1] = 5.0
    return data


def fit(model, epochs=EPOCHS, data=None, **options):
    """Trains on the images, in their order, and returns the history."""
    data = images() if data is None else data
    data = (*given(model, data), data)
    return model.fit(*data, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **options).history


def check_same_weights(model, weights, tolerance=0.0):
    for variable, value in zip(model.variables, weights, strict=True):
        np.testing.assert_allclose(variable, value, rtol=tolerance, atol=tolerance, err_msg=variable.name)
