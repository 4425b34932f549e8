"""Pickles and deep copies compute the same to the bit, on variables of their own."""

import copy
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from make_saved_files import hidden_networks
from registry import REGISTRY
from two_shifts import parts, two_shifts

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions

COPIES = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy}


@pytest.fixture(params=COPIES.values(), ids=COPIES.keys())
def copied(request):
    return request.param


def check_own_variables(new, old):
    assert [variable.shape for variable in new] == [variable.shape for variable in old]
    assert not {id(variable) for variable in new} & {id(variable) for variable in old}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", REGISTRY)
def test_every_bijector(name, rng):
    case = REGISTRY[name]
    bijector = case.make(tf.float64)
    batch = (2, *case.batch_shape)
    y = tf.constant(rng.uniform(*case.data_range, [*batch, *case.event_shape]))
    ndims = len(case.event_shape)

    def results(bijector):
        x = bijector.inverse(tf.identity(y))
        log_det = bijector.inverse_log_det_jacobian(tf.identity(y), ndims)
        return x, log_det, bijector.forward(tf.identity(x))

    # What it keeps of its calls must not stand in the way.
    before = results(bijector)
    for copied in COPIES.values():
        new = copied(bijector)
        for value, expected in zip(results(new), before, strict=True):
            np.testing.assert_array_equal(value, expected)
        check_own_variables(new.variables, bijector.variables)
        for variable in new.trainable_variables:
            variable.assign(variable + 1.0)
    for value, expected in zip(results(bijector), before, strict=True):
        np.testing.assert_array_equal(value, expected)


FLOWS = {
    "dense_flow": lambda: sn.dense_flow((2, 2), activation="spline", seed=1),
    "conv_flow": lambda: sn.conv_flow(
        (4, 4, 1),
        num_blocks=2,
        layers_per_block=1,
        centering=False,
        preprocessing=sn.images.pixel_sigmoid(4),
        seed=1,
    ),
    "glow_flow, lu": lambda: sn.glow_flow(
        (4, 4, 1),
        num_blocks=2,
        steps_per_block=1,
        width=4,
        act_norm=False,
        centering=False,
        layer="lu",
        seed=1,
    ),
    "free_form_flow": lambda: sn.free_form_flow(
        (2, 2), num_layers=1, width=3, depth=1, gradient="self_norm", seed=1
    ),
    "mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.Variable([0.0, 1.0])),
        tfd.MultivariateNormalDiag(tf.Variable([[0.0, 1.0], [2.0, 3.0]])),
    ),
}


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS.keys())
def test_distributions_and_models_of_them(make):
    """A model goes on as the original does: with its weights, and the state of its optimizer."""
    model = sn.FlowModel(make(), sn.Tracking(num_probes=2), bits_per_dim=True, name="flow")
    data = np.random.default_rng(1).uniform(0.1, 3.9, [20, *model.distribution.event_shape])
    data = data.astype(np.float32)
    model.trainable_variables[0].trainable = False
    # One of them has traced its steps when it is copied.
    is_eager = make is not FLOWS["dense_flow"]
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=is_eager, max_skipped_updates=7)
    model.fit(data, batch_size=10, verbose=0)
    log_prob = model.log_prob(data)
    copies = [copied(model) for copied in COPIES.values()]
    for new in copies:
        np.testing.assert_array_equal(new.log_prob(data), log_prob)
        check_own_variables(new.distribution.variables, model.distribution.variables)
        assert (new.name, new.inverse_learning) == ("flow", model.inverse_learning)
        assert [v.name for v in new.trainable_variables] == [v.name for v in model.trainable_variables]
        for mine, other in zip(model.optimizer.variables, new.optimizer.variables, strict=True):
            np.testing.assert_array_equal(mine, other, err_msg=mine.name)
    histories = [m.fit(data, batch_size=10, shuffle=False, verbose=0).history for m in (model, *copies)]
    # Not to the bit: TensorFlow adds the gradients of a spline's gathers in any order.
    for history in histories[1:]:
        assert history.keys() == histories[0].keys() > {"bits_per_dim"}
        for name, value in histories[0].items():
            np.testing.assert_allclose(history[name], value, rtol=1e-5, err_msg=name)
    for new in copies:
        for name, value in parts(model).items():
            np.testing.assert_allclose(parts(new)[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_models_of_builders(copied):
    model = sn.FlowModel.from_builder(two_shifts)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(np.ones([10, 2], np.float32), verbose=0)
    new = copied(model)
    assert new.get_config() == model.get_config()
    for name, value in parts(model).items():
        np.testing.assert_array_equal(parts(new)[name], value)
    new.trainable_variables[0].assign([5.0, 5.0])
    assert not np.array_equal(model.trainable_variables[0], [5.0, 5.0])


def test_a_model_that_is_not_compiled(copied):
    assert copied(sn.FlowModel(two_shifts())).optimizer is None


class WithArguments(sn.FlowModel):
    """A subclass with an argument of its own, and with what it makes of it."""

    def __init__(self, distribution, strength=1.0, **options):
        super().__init__(distribution, **options)
        self.strength, self.powers = strength, [strength, strength**2]
        self.network = keras.layers.Dense(2, name="own")
        self.network.build((None, 3))


class FromSize(sn.FlowModel):
    """Makes its distribution itself."""

    def __init__(self, size, seed):
        super().__init__(sn.dense_flow(size, num_layers=1, seed=seed), sn.Reconstruction(), name="own")


def test_models_with_arguments_of_their_own(copied):
    flow = sn.dense_flow(2, seed=1)
    model = WithArguments(flow, 3.0, inverse_learning=None, bits_per_dim=True)
    new = copied(model)
    assert (new.strength, new.powers, new.name) == (3.0, [3.0, 9.0], model.name)
    assert new.inverse_learning is None
    assert new.reports_bits_per_dim
    for variable, other in zip(new.weights, model.weights, strict=True):
        np.testing.assert_array_equal(variable, other)
    assert [v.path for v in new.weights] == [v.path for v in model.weights]
    check_own_variables([v.value for v in new.weights], [v.value for v in model.weights])
    made = FromSize(3, seed=2)
    made.trainable_variables[0].assign([1.0, 2.0, 3.0])
    new = copied(made)
    assert (new.inverse_learning, new.name) == (sn.Reconstruction(), "own")
    np.testing.assert_array_equal(new.trainable_variables[0], [1.0, 2.0, 3.0])


@keras.saving.register_keras_serializable("tests")
class WithConfig(WithArguments):
    """Names its argument in the config, as Keras asks for; the constructor gets it."""

    def get_config(self):
        return super().get_config() | {"strength": self.strength}


@keras.saving.register_keras_serializable("tests")
class FromOwnConfig(WithConfig):
    """Reads its config itself."""

    @classmethod
    def from_config(cls, config, custom_objects=None):
        strength = config.pop("strength", 1.0)
        model = super().from_config(config, custom_objects)
        model.strength = strength
        return model


@pytest.mark.parametrize("kind", [WithConfig, FromOwnConfig])
@pytest.mark.parametrize("copied", [*COPIES.values(), keras.models.clone_model], ids=[*COPIES, "clone"])
def test_arguments_in_a_config_reach_the_copy(kind, copied):
    made = kind.from_builder(two_shifts)
    assert made.strength == 1.0
    model = kind.from_config(made.get_config() | {"strength": 3.0})
    assert model.strength == copied(model).strength == 3.0
    if kind is WithConfig:
        assert copied(model).powers == [3.0, 9.0]


def test_an_entry_that_no_constructor_takes_is_refused():
    config = WithConfig.from_builder(two_shifts).get_config() | {"weakness": 3.0}
    with pytest.raises(ValueError, match="must have the entries"):
        WithConfig.from_config(config)
    with pytest.raises(ValueError, match="must have the entries"):
        sn.FlowModel.from_config(WithConfig.from_builder(two_shifts).get_config())


def test_another_process_reads_a_pickle(tmp_path):
    flow = sn.dense_flow(2, activation="spline", seed=1)
    (tmp_path / "flow.pickle").write_bytes(pickle.dumps(flow))
    load = (
        "import pickle, sys, numpy as np; flow = pickle.load(open(sys.argv[1], 'rb')); "
        "np.save(sys.argv[2], flow.log_prob(np.ones([3, 2], np.float32)))"
    )
    arguments = [tmp_path / "flow.pickle", tmp_path / "log_prob.npy"]
    subprocess.run([sys.executable, "-c", load, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "log_prob.npy"), flow.log_prob(tf.ones([3, 2])))


def test_a_network_that_only_a_function_knows_is_not_shared_in_silence():
    model = sn.FlowModel(hidden_networks())
    with pytest.raises(ValueError, match="cannot be copied: only a function holds `.*kernel.*from_builder"):
        copy.deepcopy(model)
    made = sn.FlowModel.from_builder(hidden_networks)
    check_own_variables(
        [v.value for v in copy.deepcopy(made).trainable_variables],
        [v.value for v in made.trainable_variables],
    )
