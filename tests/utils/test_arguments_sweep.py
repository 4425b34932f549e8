"""Every argument of every public function, replaced by values that are wrong: refused, and named."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.figure import Figure
from public_functions import EYE, PUBLIC

import tfp_selfnorm as sn

tfb = tfp.bijectors
tfd = tfp.distributions

# Values that are wrong for each argument, by its kind. `None` is left out where it is the default.
STRANGE = [object(), 1j, b"a", {1}, {}, None, tf.constant("a")]
NO_NUMBER = [*STRANGE, "a", [], np.array([1.0, 2.0]), True, np.nan]
NO_INT = [*NO_NUMBER, 2.5, np.inf, np.float32(1.0), tf.Variable(3)]
NO_COUNT = [*NO_INT, 0, -1]
NO_BOOL = [*STRANGE, "a", [], 0, 1, 2.5, np.array([True, False]), tf.Variable(True)]
NO_NAME = [*STRANGE, "a", [], 0, True, np.array([]), tf.Variable(3)]
NO_SHAPE = [
    *STRANGE,
    "a",
    2.5,
    -1,
    0,
    np.nan,
    True,
    (2, -1),
    (2.5,),
    ("a",),
    (True,),
    [[2, 3]],
    EYE,
    tf.Variable(3),
]
NO_OBJECT = [*STRANGE, "a", [], 2.5, True, np.array([]), tf.Variable(3)]
NO_ARRAY = [value for value in STRANGE if value is not None] + ["a", True, 1, tf.Variable(3)]
NO_SEED = [
    *STRANGE,
    "a",
    [],
    2.5,
    np.nan,
    True,
    [1],
    [1, 2.5],
    ["a", 1],
    tf.Variable(3),
    tf.constant([1.0, 2.0]),
]
NO_PATH = [*STRANGE, [], 0, 2.5, True, np.array([]), tf.Variable(3)]

WRONG = {
    "activation": [value for value in NO_NAME if value is not None],
    "add_state": NO_OBJECT,
    "alpha": [*NO_NUMBER, 0.0, -1, 0.5, np.inf],
    "batch_size": NO_COUNT,
    "ax": [*STRANGE, "a", [], 2.5, True, Figure()],
    "base": [*STRANGE, "a", 1, tfb.Exp(), tfd.Normal(0.0, 1.0), tfd.Sample(tfd.Normal(0.0, 1.0), [3])],
    "bias": NO_ARRAY,
    "bias_stddev": [*NO_NUMBER, -1, np.inf],
    "bijector": NO_OBJECT,
    "bijector_kwargs": NO_OBJECT,
    "bits_per_dim": NO_BOOL,
    "block_size": NO_COUNT,
    "bound": [*NO_NUMBER, 0.0, -1, np.inf],
    "bounds": [*NO_NUMBER, 2.5, (1.0,), (1.0, "a"), (2.0, 1.0), (0.0, 1.0), (1.0, np.inf), (np.nan, 1.0)],
    "builder": [value for value in NO_OBJECT if value is not None],
    "flow_builder": [value for value in NO_OBJECT if value is not None],
    "channels": NO_COUNT,
    "columns": NO_OBJECT,
    "condition_ndims": [*STRANGE[:4], *STRANGE[5:], "a", 2.5, True, -1, (1, 1), tf.Variable(3)],
    "condition_shape": [*NO_SHAPE, (2, None), (2, 3), ()],
    "condition_size": [*NO_INT, -1],
    "data": [*STRANGE, "a", [], 2.5, True, np.array([1.0]), np.array([["a"]])],
    "dataset": NO_OBJECT,
    "decoder": NO_OBJECT,
    "depth": NO_COUNT,
    "distribution": NO_OBJECT,
    "distribution_or_bijector": NO_OBJECT,
    "dtype": [
        *STRANGE,
        "a",
        [],
        0,
        1,
        True,
        np.array([]),
        tf.Variable(3),
        "int32",
        tf.int64,
        complex,
        object,
    ],
    "encoder": NO_OBJECT,
    "errors": [*NO_OBJECT[5:], {"dense": 1.0}],
    "embedding": NO_OBJECT,
    "event_ndims": NO_COUNT,
    "event_shape": [*NO_SHAPE, (2, None), tf.TensorShape(None)],
    "event_size": NO_COUNT,
    "exact": NO_BOOL,
    "figure": [*STRANGE, "a", [], 2.5, True],
    "filepath": NO_PATH,
    "flow": NO_OBJECT,
    "fontsize": [*NO_NUMBER, 0.0, -1, np.inf],
    "gradient": NO_NAME,
    "history": [*STRANGE, [], 2.5, True, {"loss": []}, {"loss": ["a"]}, {"loss": [np.nan]}],
    "image_shape": [*NO_SHAPE, (4, 4), (4, None, 1), (4, 4, 1, 1)],
    "images": [*STRANGE, "a", [], 2.5, True, np.array([1.0])],
    "initial": [*NO_NUMBER, 0.0, -1, np.inf],
    "input_shape": [*NO_SHAPE, (4, 4), (4, 4, None)],
    "inverse_learning": [value for value in NO_OBJECT if value is not None] + [sn.Tracking],
    "inversion": NO_NAME,
    "is_adapted": [*STRANGE, "a", [], 0, False, tf.Variable(3)],
    "is_valid": [*STRANGE, "a", [], 0, 2.5, tf.Variable(3)],
    "kernel_size": [*NO_SHAPE, 2, (3, 4), (3, None), (3, 3, 3)],
    "kind": NO_NAME,
    "kinds": [*STRANGE[:4], STRANGE[-1], "a", [], 2.5, {"b": "real"}],
    "table": [*STRANGE, "a", [], 2.5, EYE],
    "layer": [*NO_OBJECT, "learned", sn.SelfNormDense.trainable, tfb.Exp()],
    "layers": [object(), None, 2.5, "a", [None], [tfb.Exp()], tf.Variable(3)],
    "shrinkage": [value for value in NO_NUMBER if value is not None] + [-0.1, 1.1],
    "gradient_corrections": [object(), "a", [], 2.5, {"dense": 1.0}, tf.Variable(3)],
    "limits": [*STRANGE, "a", [], 2.5, True, (1, 0), (0, np.inf), ((0, 1), (1, 1)), (0, 1, 2)],
    "log_dets": [object(), "a", [], 2.5, {"dense": 1.0}, tf.Variable(3)],
    "log_dir": NO_PATH,
    "log_prob": [*STRANGE, "a", True, np.array([1]), tf.constant([1j])],
    "max_norm": [*NO_NUMBER, 0.0, -1, 5.5, np.inf],
    "mixture": [*NO_NUMBER, -0.1, 1.1, np.inf, tf.Variable(3)],
    "model": NO_OBJECT,
    "momentum": [*NO_NUMBER, -0.1, 1.0, np.inf],
    "names": [*STRANGE, "a", 2.5, True, ["a"], [1, 2]],
    "negative_slope": [*NO_NUMBER, 0.0, -1.0, 2.5, np.inf, tf.Variable(3)],
    "network": NO_OBJECT,
    "network_dtype": [*STRANGE, "a", [], 3, True, np.array([]), tf.Variable(3), "int32"],
    "num_bins": [*NO_COUNT, 1, 1000],
    "num_levels": [*NO_COUNT, 1],
    "num_points": [*NO_COUNT, 1, 10**6],
    "points": [*STRANGE, "a", [], 2.5, True, np.array([1.0]), np.zeros([4, 3])],
    "preprocessing": NO_OBJECT,
    "ranks": [*STRANGE, "a", [], 2.5, True, [[[1]]], [-1, 1], [1, 10], [0.5]],
    "rate": [*NO_NUMBER, 0.0, -1, np.inf],
    "reconstruction": [*NO_OBJECT, sn.Tracking()],
    "samples": [*STRANGE, "a", [], 2.5, True, np.zeros([4, 3]), np.full([3, 20, 2], np.nan)],
    "seed": NO_SEED,
    "spatial_shape": [*NO_SHAPE, (4, None), (4, 4, 4)],
    "step": [*NO_NUMBER[:-1], 2.5, tf.constant([1, 2]), tf.constant(True)],
    "transform": NO_NAME,
    "tolerance": [*NO_NUMBER, -1, np.inf],
    "verbose": [*STRANGE, "a", [], -1, 2.5, tf.Variable(3)],
    "weight": [*[value for value in NO_NUMBER if not isinstance(value, dict)], -1, np.inf],
}
WRONG |= dict.fromkeys(["num_blocks", "num_channels", "num_examples"], NO_COUNT)
WRONG |= dict.fromkeys(
    ["num_angles", "num_conditioning", "num_inputs"], [value for value in NO_COUNT if repr(value) != "0"]
)
WRONG |= dict.fromkeys(["num_layers", "num_outputs", "num_probes", "num_samples", "refresh_every"], NO_COUNT)
WRONG["num_steps"] = NO_COUNT
WRONG |= dict.fromkeys(["every_epochs", "every_steps"], NO_COUNT)
WRONG |= {"angle_bins": WRONG["num_bins"], "angle_width": NO_COUNT}
WRONG |= dict.fromkeys(["layers_per_block", "steps_per_block", "width"], NO_COUNT)
WRONG |= dict.fromkeys(
    [
        "act_norm",
        "centering",
        "whitening",
        "per_layer",
        "refreshes",
        "rotates",
        "split_prior",
        "use_bias",
        "validate_args",
        "whitens",
    ],
    NO_BOOL,
)
WRONG |= dict.fromkeys(
    ["deviation", "forward_kernel", "inverse_kernel", "kernel", "log_scale", "mean", "shift"], NO_ARRAY
)
WRONG |= dict.fromkeys(["first_kernel", "second_kernel"], NO_ARRAY)
# Arguments of one name that are of another kind here.
WRONG |= {
    "conv_flow.layer": NO_NAME,
    "ConditionalFlowModel.condition_shape": [
        *STRANGE[:4],
        *STRANGE[5:],
        "a",
        2.5,
        True,
        -1,
        np.nan,
        (2, -1),
        ((2,), (3,)),
    ],
    "autoregressive_flow.layer": NO_NAME,
    "autoregressive_flow.network": [value for value in NO_OBJECT if value is not None],
    "autoregressive_network.dtype": WRONG["network_dtype"],
    "autoregressive_network.seed": NO_INT,
    "coupling_flow.layer": NO_NAME,
    "table_flow.condition_shape": [*NO_SHAPE, (2, None), (2, 3), ()],
    "coupling_flow.network": [value for value in NO_OBJECT if value is not None],
    "dense_network.dtype": WRONG["network_dtype"],
    "dense_network.seed": NO_INT,
    "dense_flow.layer": NO_NAME,
    "estimate_log_det.num_probes": [*NO_COUNT, 1],
    "estimate_log_prob.num_probes": [*NO_COUNT, 1],
    "glow_flow.layer": NO_NAME,
    "coupling_network.dtype": WRONG["network_dtype"],
    "coupling_network.kernel_size": [*NO_SHAPE, (3, None), (3, 3, 3)],
    "coupling_network.seed": NO_INT,
    "residual_network.dtype": WRONG["network_dtype"],
    "residual_network.seed": NO_INT,
    "dequantize_dataset.seed": NO_INT,
    "InverseQuality.seed": [*NO_INT, None],
    "inverse_errors.seed": [*NO_INT, None],
    "is_adapted.distribution": NO_OBJECT,
    "marginals.num_bins": [*NO_COUNT, 1],
    "samples.num_bins": [*NO_COUNT, 1],
    "sbc_ranks.names": [*STRANGE, "a", 2.5, True, ["a", "b"], [1]],
    "sbc_ranks.num_bins": NO_COUNT,
    "SampleGrid.seed": [value for value in NO_SEED if value is not None],
    "Tracking.follow.seed": NO_INT,
}
# The data have tests of their own, and so have names.
NOT_HERE = {"arguments", "condition", "name", "x", "y"}


MAKES_VARIABLES = (
    "trainable",
    "_flow",
    "autoregressive_network",
    "coupling_network",
    "residual_network",
    "dense_network",
    "trainable_spline",
)


# What builders pass on, with the values that are taken without them.
LAYER_OPTIONS = {"gradient": "self_norm", "mixture": 0.5, "inversion": None}
FREE_FORM_OPTIONS = {"gradient": None, "inversion": "learned", "num_probes": 1}


def arguments_of(function):
    """The names of the arguments with their defaults, those of `**layer_options` too."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "layer_options":
            options = FREE_FORM_OPTIONS if function is sn.free_form_flow else LAYER_OPTIONS
            yield from options.items()
        else:
            yield parameter.name, parameter.default


def wrong_values(name, argument, default):
    values = WRONG.get(f"{name}.{argument}", WRONG[argument])
    return [value for value in values if value is not None or default is not None]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_of_every_public_function_is_checked(name):
    function, arguments = PUBLIC[name]
    made, silent = [], []

    def record(make, **options):
        made.append(options.get("name"))
        return make(**options)

    for argument, default in arguments_of(function):
        if argument in NOT_HERE:
            continue
        for value in wrong_values(name, argument, default):
            call = arguments() | {argument: value}
            made.clear()
            try:
                with tf.variable_creator_scope(record):
                    function(**call)
            except (TypeError, ValueError) as error:
                if f"`{argument}`" in str(error) and not (made and name.endswith(MAKES_VARIABLES)):
                    continue
                silent.append((argument, value, made[:1], str(error)[:100]))
            except Exception as error:
                silent.append((argument, value, type(error).__name__, str(error)[:100]))
            else:
                silent.append((argument, value, "accepted"))
    assert not silent


def test_the_sweep_holds_every_public_function():
    found = {}
    for module in (sn, sn.bijectors, sn.baselines, sn.flows, sn.callbacks, sn.plot):
        found |= {name: getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}
    functions = dict(inspect.getmembers(sn.images, inspect.isfunction))
    found |= {name: value for name, value in functions.items() if value.__module__ == sn.images.__name__}
    makers = {
        f"{name}.trainable" for name in found if inspect.ismethod(getattr(found[name], "trainable", None))
    }
    # The base classes have no constructor to call; private functions are not for users.
    public = {name for name in found if not name.startswith("_")} | makers
    assert public - set(PUBLIC) == {"SelfNorm", "SelfNormalizing"}
