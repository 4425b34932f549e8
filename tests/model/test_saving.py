"""Models as `.keras` files, weights by name, and what a failure on the way leaves behind."""

import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from tampering import tampered
from two_shifts import parts, two_shifts

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


@pytest.fixture
def data(rng):
    return rng.normal(size=[40, 2]).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained model and its file."""
    folder = tmp_path_factory.mktemp("saved")
    data = np.random.default_rng(0).normal(size=[40, 2]).astype(np.float32)
    model = sn.FlowModel.from_builder(
        sn.dense_flow,
        sn.Reconstruction(weight=sn.AdaptiveWeight(0.01, rate=0.1, per_layer=True)),
        event_shape=2,
        seed=1,
        name="flow",
    )
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 100)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=2, max_skipped_updates=7)
    model.fit(data, batch_size=10, epochs=1, verbose=0)
    model.save(folder / "flow.keras")
    return model, folder / "flow.keras"


def test_a_file_keeps_how_a_model_was_made_compiled_and_trained(saved, data):
    model, path = saved
    loaded = keras.models.load_model(path)
    assert loaded.get_config() == model.get_config()
    assert loaded.inverse_learning == model.inverse_learning
    assert loaded.distribution.name == "flow"
    assert loaded.steps_per_execution == 2
    assert loaded._guard.max_skipped == 7
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for mine, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.name)
    assert parts(loaded).keys() == parts(model).keys()
    assert any("log_reconstruction_weight" in name and value != 0 for name, value in parts(loaded).items())
    for name, value in parts(loaded).items():
        np.testing.assert_array_equal(value, parts(model)[name], err_msg=name)
    np.testing.assert_array_equal(loaded.log_prob(data), model.log_prob(data))


def test_how_r_follows_w_is_fixed_when_a_model_is_made():
    model = sn.FlowModel(sn.dense_flow(2, seed=1))
    with pytest.raises(AttributeError, match="inverse_learning"):
        model.inverse_learning = sn.Reconstruction()


def test_frozen_variables_stay_frozen_and_keep_the_others_momenta(tmp_path, data):
    for freeze_first in (True, False):
        model = sn.FlowModel.from_builder(two_shifts)
        if freeze_first:
            model.trainable_variables[0].trainable = False
        model.compile(keras.optimizers.Adam(0.1))
        model.fit(data, epochs=2, verbose=0)
        model.named_variables["first"].trainable = False
        model.save(tmp_path / "flow.keras")
        loaded = keras.models.load_model(tmp_path / "flow.keras")
        assert [v.name for v in loaded.trainable_variables] == ["second"]
        for mine, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_the_dtype_policy_of_networks_is_kept(tmp_path, rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = sn.FlowModel.from_builder(
            sn.glow_flow,
            image_shape=(2, 2, 1),
            num_blocks=1,
            steps_per_block=1,
            width=4,
            act_norm=False,
            centering=False,
            seed=1,
        )
    finally:
        keras.config.set_dtype_policy("float32")
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    model.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    assert keras.config.dtype_policy().name == "float32"
    x = rng.normal(size=[5, 2, 2, 1]).astype(np.float32)
    np.testing.assert_array_equal(loaded.log_prob(x), model.log_prob(x))


class Subclass(sn.FlowModel):
    def __init__(self, distribution, temperature=2.0, **options):
        super().__init__(distribution, **options)


def test_subclasses_have_builders_too():
    model = Subclass.from_builder(two_shifts, sn.Reconstruction(), bits_per_dim=True)
    assert isinstance(model, Subclass)
    assert isinstance(model.inverse_learning, sn.Reconstruction)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"names": ["first", "third"]}, "`third` is missing in the file; `second` is surplus in the file"),
        ({"size": 3}, r"`first` has shape \(2,\) in the file and \(3,\) here"),
    ],
)
def test_weights_of_another_model_are_refused_and_change_nothing(arguments, problem, tmp_path):
    model = sn.FlowModel.from_builder(two_shifts)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(np.ones([40, 2], np.float32), verbose=0)
    model.save_weights(tmp_path / "flow.weights.h5")
    other = sn.FlowModel.from_builder(two_shifts, **arguments)
    for variable in other.trainable_variables:
        variable.assign(variable + 4.0)
    other.compile(keras.optimizers.Adam(0.1))
    other.fit(np.ones([4, *other.distribution.event_shape], np.float32), verbose=0)
    before, state = parts(other), [variable.numpy() for variable in other.optimizer.variables]
    with pytest.raises(ValueError, match=problem):
        other.load_weights(tmp_path / "flow.weights.h5")
    for name, value in parts(other).items():
        np.testing.assert_array_equal(value, before[name])
    for variable, value in zip(other.optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (1, 1, 2)])
def test_a_weight_of_the_right_size_in_another_shape_is_refused(shape):
    model, store = sn.FlowModel(two_shifts()), {}
    model.save_own_variables(store)
    store |= {"first": np.array([3.0, 4.0], np.float32), "second": store["second"].reshape(shape)}
    message = rf"`second` has shape \({', '.join(map(str, shape))}\) in the file and \(2,\) here"
    with pytest.raises(ValueError, match=message):
        model.load_own_variables(store)
    np.testing.assert_array_equal(parts(model)["first"], [0.0, 0.0])


def test_a_model_of_a_distribution_saves_weights_and_says_why_not_more(tmp_path, data):
    model, other = sn.FlowModel(two_shifts()), sn.FlowModel(two_shifts())
    with pytest.raises(ValueError, match=r"made from a distribution.*from_builder.*save_weights.*export"):
        model.save(tmp_path / "flow.keras")
    assert not list(tmp_path.iterdir())
    model.trainable_variables[0].assign([1.0, 2.0])
    model.save_weights(tmp_path / "flow.weights.h5")
    other.load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(other.log_prob(data), model.log_prob(data))


@pytest.mark.parametrize("method", ["save", "save_weights"])
def test_a_full_disk_leaves_the_earlier_file(method, tmp_path, data):
    path = tmp_path / {"save": "flow.keras", "save_weights": "flow.weights.h5"}[method]
    model = sn.FlowModel.from_builder(two_shifts)
    getattr(model, method)(path)
    earlier = path.read_bytes()
    model.trainable_variables[0].assign([1.0, 2.0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Python ignores the signal; writing more than this fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        with pytest.raises((OSError, RuntimeError)):
            getattr(model, method)(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]
    getattr(model, method)(path)
    assert path.read_bytes() != earlier


@pytest.mark.parametrize(("method", "name"), [("save", "flow.keras"), ("save_weights", "flow.weights.h5")])
def test_a_missing_folder_is_named(method, name, tmp_path):
    model = sn.FlowModel.from_builder(two_shifts)
    with pytest.raises(FileNotFoundError, match="absent.*does not exist; nothing was written"):
        getattr(model, method)(tmp_path / "absent" / name)


def test_keras_saves_during_training(tmp_path, data):
    model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, seed=1)
    model.compile(keras.optimizers.Adam(1e-2))
    options = {"monitor": "val_nll", "mode": "min", "save_best_only": True}
    callbacks = [keras.callbacks.ModelCheckpoint(tmp_path / "new" / "best.keras", **options)]
    history = model.fit(data, validation_data=data, epochs=3, callbacks=callbacks, verbose=0)
    best = keras.models.load_model(tmp_path / "new" / "best.keras")
    np.testing.assert_allclose(-np.mean(best.log_prob(data)), min(history.history["val_nll"]), rtol=1e-6)


def test_a_new_process_needs_no_custom_objects(saved, data, tmp_path):
    model, path = saved
    np.save(tmp_path / "x.npy", data)
    load = (
        "import sys, keras, numpy as np, tfp_selfnorm; model = keras.models.load_model(sys.argv[1]); "
        "np.save(sys.argv[3], model.log_prob(np.load(sys.argv[2])))"
    )
    arguments = [path, tmp_path / "x.npy", tmp_path / "log_prob.npy"]
    subprocess.run([sys.executable, "-c", load, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "log_prob.npy"), model.log_prob(data))


FOREIGN = "antigravity"  # a module of Python that nothing imports
TAMPERINGS = {
    "shape": (
        lambda c: c["config"]["arguments"].update(event_shape=3),
        r"has shape \(2,\) in the file and \(3,\)",
    ),
    "class": (
        lambda c: c.update(class_name="Foe", module=FOREIGN, registered_name="Foe"),
        "Could not locate",
    ),
    "optimizer": (
        lambda c: c["compile_config"]["optimizer"].update(class_name="Foe", module=FOREIGN),
        "Could not locate",
    ),
    "builder": (
        lambda c: c["config"].update(builder={"function": f"{FOREIGN}.fly"}),
        f"`builder` of the saved model is the function '{FOREIGN}.fly', which is not registered",
    ),
    "no builder": (lambda c: c["config"].update(builder=3), "`builder` of the saved model is no function: 3"),
    "bijector": (
        lambda c: c["config"]["arguments"].update(preprocessing={"bijector": [f"{FOREIGN}.Foe", {}]}),
        f"`arguments.preprocessing` of the saved model is a bijector of the class '{FOREIGN}.Foe', which",
    ),
    "nested": (
        lambda c: c["config"]["arguments"].update(
            preprocessing={"bijector": ["Chain", {"bijectors": [{"bijector": ["Inline", {}]}]}]}
        ),
        r"`arguments.preprocessing.bijectors\[0\]` of the saved model is a bijector of the class 'Inline'",
    ),
    "option": (
        lambda c: c["config"].update(inverse_learning={"option": ["Tracking", {"speed": 3}]}),
        "`inverse_learning` of the saved model does not describe",
    ),
    "value": (
        lambda c: c["config"].update(inverse_learning={"option": ["Tracking", {"num_probes": -1}]}),
        "`num_probes` must be a positive int; got -1",
    ),
    "array": (
        lambda c: c["config"]["arguments"].update(event_shape={"array": ["object", [1], [2], "array"]}),
        "`arguments.event_shape` of the saved model does not describe",
    ),
    "short array": (
        lambda c: c["config"]["arguments"].update(event_shape={"array": ["float32", [1]]}),
        "`arguments.event_shape` of the saved model does not describe",
    ),
    "schedule": (
        lambda c: c["config"]["arguments"].update(event_shape={"schedule": ["__class__", {"name": "x"}]}),
        "`arguments.event_shape` of the saved model is a schedule of the class '__class__', which is none",
    ),
    "kind": (
        lambda c: c["config"]["arguments"].update(event_shape={"pickle": "gASV"}),
        "`arguments.event_shape` of the saved model is of no known kind",
    ),
    "surplus": (lambda c: c["config"].update(code="..."), "must have the entries"),
    "no arguments": (lambda c: c["config"].update(arguments=[2]), "must have the entries"),
}


@pytest.mark.parametrize("change", TAMPERINGS)
def test_a_tampered_file_is_refused_and_nothing_imported(change, saved):
    function, message = TAMPERINGS[change]
    packages = {name.partition(".")[0] for name in sys.modules}
    with pytest.raises((ValueError, TypeError), match=message):
        keras.models.load_model(tampered(saved[1], function))
    assert {name.partition(".")[0] for name in sys.modules} == packages
    assert FOREIGN not in packages


def test_a_builder_must_be_known_where_it_is_loaded(tmp_path):
    def builder(size):
        return two_shifts(size=size)

    with pytest.raises(TypeError, match="`builder` is a function that cannot be saved"):
        sn.FlowModel.from_builder(builder, size=2)
    model = sn.FlowModel.from_builder(two_shifts)
    model.save(tmp_path / "flow.keras")

    def rename(config):
        config["config"]["builder"] = {"function": "tests>two_shifts_again"}
        config["config"]["arguments"] = {"size": 2}

    path = tampered(tmp_path / "flow.keras", rename)
    with pytest.raises(ValueError, match="'tests>two_shifts_again', which is not registered here"):
        keras.models.load_model(path)
    known = {"tests>two_shifts_again": builder}
    assert keras.models.load_model(path, custom_objects=known).distribution.event_shape == (2,)
    config = model.get_config() | {
        "builder": {"function": "tests>two_shifts_again"},
        "arguments": {"size": 3},
    }
    assert sn.FlowModel.from_config(config, custom_objects=known).distribution.event_shape == (3,)


class WithOwnParts(sn.FlowModel):
    """A subclass with a weight, a layer and a metric of its own, which train along."""

    def __init__(self, distribution):
        super().__init__(distribution)
        self.temperature = self.add_weight(name="temperature", shape=(), initializer="ones")
        self.network = keras.layers.Dense(1)
        self.network.build((None, 2))
        self.steps = keras.metrics.Sum(name="steps")

    def compute_loss(self, x, *args, **kwargs):
        penalty = self.temperature**2 + tf.reduce_mean(self.network(x) ** 2)
        return super().compute_loss(x, *args, **kwargs) + penalty

    def train_step(self, data):
        results = super().train_step(data)
        self.steps.update_state(1.0)
        return {**results, "steps": self.steps.result()}


def test_a_subclass_trains_and_saves_parts_of_its_own(tmp_path):
    x = np.random.default_rng(0).normal(size=[40, 2]).astype(np.float32)
    model, loaded = (WithOwnParts(sn.dense_flow(2, num_layers=1, seed=1)) for _ in range(2))
    model.compile(keras.optimizers.SGD(0.1))
    history = model.fit(x, batch_size=10, epochs=2, verbose=0).history
    assert history["steps"] == [4.0, 4.0]
    # Its gradient is 2 t, alone.
    np.testing.assert_allclose(model.temperature, 0.8**8, rtol=1e-5)
    model.save_weights(tmp_path / "own.weights.h5")
    loaded.load_weights(tmp_path / "own.weights.h5")
    for variable, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(variable, other, err_msg=variable.path)
