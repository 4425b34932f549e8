"""Models as `.keras` files, weights by name, and what a failure on the way leaves behind."""

import json
import resource
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.serialization import decode, encode

tfb, tfd = tfp.bijectors, tfp.distributions


@keras.saving.register_keras_serializable("tests")
def two_shifts(names=("first", "second"), size=2):
    """Two variables of one shape, in the order of the names."""
    shifts = [tfb.Shift(tf.Variable(tf.zeros([size]), name=name)) for name in names]
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [size]), tfb.Chain(shifts))


@keras.saving.register_keras_serializable("tests")
def exponential(event_shape):
    return tfb.Softplus()


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


def parts(model):
    return {variable.name: variable.numpy() for variable in model.variables}


def test_a_file_keeps_how_a_model_was_made_compiled_and_trained(saved, data):
    model, path = saved
    loaded = keras.models.load_model(path)
    assert loaded.get_config() == model.get_config()
    assert loaded.inverse_learning == model.inverse_learning
    assert loaded.distribution.name == "flow"
    assert loaded.steps_per_execution == 2
    assert loaded._max_skipped_updates == 7
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for mine, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.name)
    assert parts(loaded).keys() == parts(model).keys()
    assert any("log_reconstruction_weight" in name and value != 0 for name, value in parts(loaded).items())
    for name, value in parts(loaded).items():
        np.testing.assert_array_equal(value, parts(model)[name], err_msg=name)
    np.testing.assert_array_equal(loaded.log_prob(data), model.log_prob(data))


def test_reordered_variables_of_one_shape_find_their_values_and_momenta(tmp_path, data):
    model = sn.FlowModel.from_builder(two_shifts)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(data, epochs=1, verbose=0)
    first, second = model.distribution.bijector.bijectors
    first.shift.assign([1.0, 2.0])
    momenta = dict(zip([v.name for v in model.trainable_variables], model.optimizer.momentums, strict=True))
    momenta["first"].assign([5.0, 6.0])
    model.save_weights(tmp_path / "flow.weights.h5")
    other = sn.FlowModel.from_builder(two_shifts, names=["second", "first"])
    other.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "flow.weights.h5")
    now_second, now_first = other.distribution.bijector.bijectors
    np.testing.assert_array_equal(now_first.shift, [1.0, 2.0])
    np.testing.assert_array_equal(now_second.shift, second.shift)
    momenta = dict(zip([v.name for v in other.trainable_variables], other.optimizer.momentums, strict=True))
    np.testing.assert_array_equal(momenta["first"], [5.0, 6.0])


def test_variables_of_one_name_are_told_apart_by_where_they_stand():
    names = [variable.name for variable in sn.FlowModel(two_shifts(["shift", "shift"])).trainable_variables]
    assert names == ["shift.bijector.bijectors.0.shift", "shift.bijector.bijectors.1.shift"]


class Line(tf.Module):
    """A network with two variables of one shape, under attributes of given names."""

    def __init__(self, first, second):
        super().__init__()
        self.attributes = first, second
        for value, name in enumerate(self.attributes):
            setattr(self, name, tf.Variable(tf.fill([2], float(value))))

    def __call__(self, x):
        first, second = (getattr(self, name) for name in self.attributes)
        return x * first[0] + second


def coupled(network, size=2):
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    return tfd.TransformedDistribution(base, sn.AffineCoupling(network, 1, event_ndims=1))


def test_a_renamed_attribute_of_a_network_does_not_swap(tmp_path):
    model = sn.FlowModel(coupled(Line("a", "b")))
    assert [v.name for v in model.trainable_variables] == ["bijector.network.a", "bijector.network.b"]
    model.save_weights(tmp_path / "flow.weights.h5")
    reordered = Line("b", "a")
    sn.FlowModel(coupled(reordered)).load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(reordered.a, [0.0, 0.0])
    with pytest.raises(
        ValueError, match="`bijector.network.z` is missing in the file; `bijector.network.a` is"
    ):
        sn.FlowModel(coupled(Line("z", "b"))).load_weights(tmp_path / "flow.weights.h5")


def test_named_bijectors_in_another_order_find_unnamed_variables(tmp_path):
    def shifts(names):
        parts = [tfb.Shift(tf.Variable([0.0, 0.0]), name=name) for name in names]
        return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), tfb.Chain(parts)), parts

    flow, (_, up) = shifts(["down", "up"])
    up.shift.assign([1.0, 2.0])
    sn.FlowModel(flow).save_weights(tmp_path / "flow.weights.h5")
    flow, (up, down) = shifts(["up", "down"])
    sn.FlowModel(flow).load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(up.shift, [1.0, 2.0])
    np.testing.assert_array_equal(down.shift, [0.0, 0.0])


class Custom(keras.Model):
    def __init__(self):
        super().__init__()
        self.last, self.hidden = (
            keras.layers.Dense(2),
            [keras.layers.Dense(3), keras.layers.BatchNormalization()],
        )

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return self.last(x)


def sequential():
    return keras.Sequential([keras.Input([1]), keras.layers.Dense(3), keras.layers.Dense(2)])


def functional():
    x = keras.Input([1])
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(keras.layers.Dense(3)(x))))


def custom():
    network = Custom()
    network(tf.zeros([1, 1]))
    return network


def in_a_closure():
    layers = keras.layers.Dense(3), keras.layers.Dense(2)
    return lambda x: layers[1](layers[0](x))


@pytest.mark.parametrize("make", [sequential, functional, custom, in_a_closure])
def test_names_do_not_count_what_was_built_before(make, tmp_path):
    model = sn.FlowModel(coupled(make()))
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    model.save_weights(tmp_path / "flow.weights.h5")
    other = sn.FlowModel(coupled(make()))
    other.load_weights(tmp_path / "flow.weights.h5")
    assert parts(other).keys() == parts(model).keys()
    for name, value in parts(model).items():
        np.testing.assert_array_equal(parts(other)[name], value, err_msg=name)


def test_state_of_the_package_makes_way_for_names_of_the_user(tmp_path):
    model = sn.FlowModel(two_shifts(["skipped_in_a_row", "training_steps"]))
    names = [variable.name for variable in model.variables]
    assert len(set(names)) == len(names)
    model.save_weights(tmp_path / "flow.weights.h5")
    model.load_weights(tmp_path / "flow.weights.h5")


def test_frozen_variables_stay_frozen_and_keep_the_others_momenta(tmp_path, data):
    for freeze_first in (True, False):
        model = sn.FlowModel.from_builder(two_shifts)
        if freeze_first:
            model.trainable_variables[0].trainable = False
        model.compile(keras.optimizers.Adam(0.1))
        model.fit(data, epochs=2, verbose=0)
        model._adopted[0].trainable = False
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


def test_variables_are_in_the_order_of_their_numbers():
    names = [f"block_{i}" for i in (10, 2, 1)]
    model = sn.FlowModel(two_shifts(names))
    assert [variable.name for variable in model.trainable_variables] == ["block_1", "block_2", "block_10"]


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


def tampered(path, change):
    """A copy of the file with its config changed."""
    other = path.with_name("tampered.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            target.writestr(name, content)
    return other


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
        "`num_probes` must be 1 or more; got -1",
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


def through_json(value):
    return decode(json.loads(json.dumps(encode(value, "value"))), "value")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        "text",
        [1, [2.5, None]],
        (1, ("a", 2)),
        {"a": (1,), "tuple": {"shape": 2}},
        tf.float64,
        tf.TensorShape([2, None]),
        exponential,
        sn.Tracking(num_probes=3, reconstruction=sn.Reconstruction("probes", 2.0)),
        sn.Reconstruction("symmetric", sn.AdaptiveWeight(0.5, bounds=(1e-3, 10.0))),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_arguments_survive_json(value):
    result = through_json(value)
    assert result == value
    assert type(result) is type(value)


def test_arrays_survive_json_bit_by_bit(rng):
    arrays = [10 * rng.normal(size=shape) for shape in ([2, 3], [0, 3], [])]
    for dtype in (np.float32, np.float64, np.int8, np.uint16, np.int32, np.bool_):
        array = np.abs(arrays[0]).astype(dtype)
        result = through_json(array)
        assert isinstance(result, np.ndarray)
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, array)
        tensor = through_json(tf.constant(array))
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor, array)
    for array in arrays:
        np.testing.assert_array_equal(through_json(array), array, strict=True)
    assert through_json(np.float32(0.1)) == np.float32(0.1)
    assert through_json(np.float64(0.1)).dtype == np.float64
    assert through_json(np.int64(3)) == 3
    assert through_json(np.float64) == through_json(np.dtype("float64")) == tf.float64


def test_a_schedule_of_keras_survives_json():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 100, 1.0)
    result = through_json(sn.Reconstruction(weight=schedule)).weight
    assert [float(result(step)) for step in (0, 50, 200)] == [0.0, 0.5, 1.0]


def test_trees_of_bijectors_survive_json(rng):
    tree = tfb.Chain(
        [
            sn.images.pixel_sigmoid(num_levels=4),
            tfb.Invert(tfb.Softplus(hinge_softness=0.5)),
            tfb.Shift([1.0, 2.0, 3.0]),
            tfb.Shift(np.float32(0.1)),
            sn.SmoothLeakyReLU(0.3),
            tfb.Invert(sn.LeakyReLU(0.2)),
            tfb.Permute([2, 0, 1]),
            tfb.ScaleMatvecTriL(np.array([[1, 0, 0], [2, 1, 0], [0, 3, 2]], np.float32)),
            tfb.Reshape([3], [1, 3]),
        ],
        name="tree",
    )
    result = through_json(tree)
    x = rng.normal(size=[5, 1, 3]).astype(np.float32)
    assert result.name == "tree"
    np.testing.assert_array_equal(result.forward(tf.identity(x)), tree.forward(tf.identity(x)))
    np.testing.assert_array_equal(
        result.forward_log_det_jacobian(tf.identity(x)), tree.forward_log_det_jacobian(tf.identity(x))
    )


def test_parameters_that_are_none_stay_none():
    bijector = tfb.FillScaleTriL(diag_bijector=tfb.Exp(), diag_shift=None)
    result = through_json(bijector)
    x = np.array([1.0, -9.0, 0.5], np.float32)
    np.testing.assert_array_equal(result.forward(x), bijector.forward(x))


class OtherShift(tfb.Shift):
    pass


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (lambda x: x, "value"),
        ([1, {"a": object()}], r"value\[1\].a"),
        (tf.Variable(1.0), "value"),
        (tfb.Shift(tf.Variable(1.0)), "value.shift"),
        (tfb.Scale(tfp.util.TransformedVariable(2.0, tfb.Exp())), "value.scale"),
        (keras.Variable(1.0), "value"),
        (tfb.Chain([tfb.Exp(), OtherShift(1.0)]), r"value.bijectors\[1\]"),
        (tfb.Inline(forward_fn=tf.exp, forward_min_event_ndims=0), "value"),
        (sn.Reconstruction(weight=tf.Variable(1.0)), "value.weight"),
        (np.array([object()]), "value"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_training(value, path):
    with pytest.raises(TypeError, match=f"`{path}` is .* cannot be saved as an argument of a builder"):
        encode(value, "value")


def test_builders_give_each_variable_a_name_of_its_own():
    flows = [
        sn.dense_flow(2, num_layers=3, activation="spline"),
        sn.conv_flow((4, 4, 1), num_blocks=2, layers_per_block=2, activation="spline"),
        sn.glow_flow((4, 4, 1), steps_per_block=2, width=4),
        sn.glow_flow((4, 4, 1), steps_per_block=2, width=4, mixing="lu"),
    ]
    for flow in flows:
        names = [variable.name for variable in flow.variables]
        assert len(set(names)) == len(names)
