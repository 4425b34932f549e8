"""Files that do not fit, are faulty or are made to do harm: refused, before anything is read or built."""

import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from tampering import tampered
from two_shifts import parts, two_shifts

import tfp_selfnorm as sn
from tfp_selfnorm.model import serialization

tfb, tfd = tfp.bijectors, tfp.distributions


@keras.saving.register_keras_serializable("tests")
def odd_variables():
    """A mask that is infinite from its start, and variables of other dtypes."""
    mask = tf.Variable([0.0, -np.inf], trainable=False, name="mask")
    half = tf.Variable([1.0, 2.0], dtype=tf.bfloat16, name="half")
    base = tfd.MixtureSameFamily(tfd.Categorical(logits=mask), tfd.Normal(tf.Variable([0.0, 1.0]), 1.0))
    return tfd.TransformedDistribution(
        tfd.Sample(base, [2]),
        tfb.Shift(tfp.util.DeferredTensor(half, lambda x: tf.cast(x, tf.float32), dtype=tf.float32)),
    )


def make_model(seed=1):
    model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, seed=seed)
    model.compile(keras.optimizers.Adam(0.1))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained model, its weights and its file."""
    folder = tmp_path_factory.mktemp("saved")
    model = make_model()
    model.fit(np.random.default_rng(0).normal(size=[20, 2]).astype(np.float32), verbose=0)
    model.save_weights(folder / "flow.weights.h5")
    model.save(folder / "flow.keras")
    return model, folder


def changed(folder, name, value, **options):
    """The weights and the file with another dataset in the place of one; Keras's marks are left out."""
    weights, whole = folder / "changed.weights.h5", folder / "changed.keras"
    weights.write_bytes((folder / "flow.weights.h5").read_bytes())
    with h5py.File(weights, "r+") as file:
        if name in file:
            del file[name]
        if isinstance(value, tuple):
            file.create_dataset(name, value, **options)
        else:
            file.create_dataset(name, data=value, **options)
    with zipfile.ZipFile(folder / "flow.keras") as source, zipfile.ZipFile(whole, "w") as target:
        for member in source.namelist():
            is_weights = member == "model.weights.h5"
            target.writestr(member, weights.read_bytes() if is_weights else source.read(member))
    return weights, whole


@pytest.fixture(scope="module")
def other():
    model = make_model(seed=2)
    model.fit(np.ones([4, 2], np.float32), verbose=0)
    return model


def check_refused(paths, model, message):
    """By both ways to load, without a change of the model."""
    weights, whole = paths
    with pytest.raises(ValueError, match=message):
        keras.models.load_model(whole)
    before, state = parts(model), [variable.numpy() for variable in model.optimizer.variables]
    for path in (weights, whole):
        with pytest.raises(ValueError, match=message):
            model.load_weights(path)
    for name, value in parts(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.name)


KERNEL = np.eye(2, dtype=np.float32)
FAULTS = {
    "a string": ("vars/dense_0_inverse_kernel", b"kernel", r"`dense_0_inverse_kernel` has shape \(\)"),
    "strings": (
        "vars/dense_0_inverse_kernel",
        np.array([[b"a", b"b"], [b"c", b"d"]]),
        "`dense_0_inverse_kernel` has dtype string in the file and float32 here",
    ),
    "complex": (
        "vars/dense_0_inverse_kernel",
        KERNEL + 1j,
        "`dense_0_inverse_kernel` has dtype complex64 in the file and float32 here",
    ),
    "integers": ("vars/dense_0_bias", np.array([1, 2]), "`dense_0_bias` has dtype int64 in the file"),
    "a compound": (
        "vars/dense_0_bias",
        np.zeros(2, [("a", "f4")]),
        "`dense_0_bias` has dtype string in the file",
    ),
    "NaN": ("vars/dense_0_bias", np.float32([0, np.nan]), r"`dense_0_bias` has the value nan at \(1,\)"),
    "infinite": (
        "vars/dense_0_bias",
        np.float32([-np.inf, 0]),
        r"`dense_0_bias` has the value -inf at \(0,\)",
    ),
    "too large": (
        "vars/dense_0_bias",
        np.array([0, 1e300]),
        r"`dense_0_bias` has the value 1e\+300 at \(1,\), beyond the range of float32",
    ),
    "a large count": ("vars/training_steps", np.uint64(2**63), "`training_steps` has .* the range of int64"),
    "empty": ("vars/dense_0_bias", h5py.Empty("f4"), "`dense_0_bias` has shape None in the file"),
    "another order": (
        "vars/dense_0_bias",
        np.zeros([2, 1], np.float32),
        r"`dense_0_bias` has shape \(2, 1\) in the file and \(2,\) here",
    ),
    "momenta": (
        "optimizer/vars/2",
        np.float32([0, np.nan]),
        "`optimizer/.*dense_0_bias.*` has the value nan",
    ),
    "a momentum of another shape": ("optimizer/vars/2", np.zeros(3, np.float32), "`optimizer/.* has shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_values_that_are_no_weights(fault, saved, other):
    name, value, message = FAULTS[fault]
    check_refused(changed(saved[1], name, value), other, message)


LARGE = {"chunks": (2**20,), "compression": "gzip"}
SIZES = {
    "weights": ("vars/dense_0_bias", (10**9,), LARGE, r"`dense_0_bias` has shape \(1000000000,\)"),
    "momenta": ("optimizer/vars/2", (10**9,), LARGE, r"dense_0_bias.*` has shape \(1000000000,\)"),
    "a metric": ("metrics/mean/vars/0", (10**9,), LARGE, r"`metrics/mean/vars/0` has shape \(1000000000,\)"),
    "chunks": (
        "vars/dense_0_bias",
        (2,),
        {"maxshape": (None,), "chunks": (10**8,), "compression": "gzip"},
        r"`dense_0_bias` has shape \(2,\) in the file, in pieces of \(100000000,\)",
    ),
}


@pytest.mark.parametrize("fault", SIZES)
def test_what_declares_too_much_is_not_read(fault, saved, other, monkeypatch):
    name, shape, options, message = SIZES[fault]
    paths = changed(saved[1], name, shape, dtype="f4", **options)
    assert paths[0].stat().st_size < 10**6
    read = h5py.Dataset.__array__

    def read_small(dataset, *arguments, **options):
        if max(dataset.size, *(dataset.chunks or [0])) > 10**6:
            raise MemoryError("more was read than the model has")
        return read(dataset, *arguments, **options)

    monkeypatch.setattr(h5py.Dataset, "__array__", read_small)
    check_refused(paths, other, message)


def test_a_link_to_another_file_is_not_followed(saved, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["bias"] = np.zeros(2, np.float32)
    paths = changed(saved[1], "vars/dense_0_bias", np.zeros(2, np.float32))
    with h5py.File(paths[0], "r+") as file:
        del file["vars/dense_0_bias"]
        file["vars/dense_0_bias"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "bias")
    with pytest.raises(ValueError, match="`dense_0_bias` is missing in the file"):
        make_model().load_weights(paths[0])


def test_what_is_odd_but_right_loads(tmp_path):
    model = sn.FlowModel.from_builder(odd_variables)
    model.named_variables["half"].assign([3.0, 0.5])
    model.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    for name, value in parts(model).items():
        np.testing.assert_array_equal(parts(loaded)[name], value, err_msg=name)


def test_a_float64_file_is_rounded_aloud_and_a_float32_file_loads(tmp_path):
    narrow, wide = (sn.FlowModel(sn.dense_flow(2, dtype=dtype, seed=1)) for dtype in (tf.float32, tf.float64))
    value = np.array([[0.1, 0.2], [0.3, 0.4]])
    wide.named_variables["dense_1_inverse_kernel"].assign(value)
    wide.save_weights(tmp_path / "wide.weights.h5")
    with pytest.warns(UserWarning, match="which round them: .*`dense_1_inverse_kernel`"):
        narrow.load_weights(tmp_path / "wide.weights.h5")
    np.testing.assert_array_equal(parts(narrow)["dense_1_inverse_kernel"], value.astype(np.float32))
    narrow.save_weights(tmp_path / "narrow.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrow.load_weights(tmp_path / "narrow.weights.h5")
        wide.load_weights(tmp_path / "narrow.weights.h5")
    np.testing.assert_array_equal(parts(wide)["dense_1_inverse_kernel"], value.astype(np.float32))


def test_skip_mismatch_loads_what_fits(tmp_path):
    model = sn.FlowModel.from_builder(two_shifts)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(np.ones([10, 2], np.float32), verbose=0)
    model.save_weights(tmp_path / "flow.weights.h5")
    other = sn.FlowModel.from_builder(two_shifts, names=["first", "third"])
    other.compile(keras.optimizers.Adam(0.1))
    with pytest.warns(UserWarning, match="`third` is missing in the file; `second` is surplus") as record:
        other.load_weights(tmp_path / "flow.weights.h5", skip_mismatch=True)
    assert len(record) == 1
    np.testing.assert_array_equal(parts(other)["first"], parts(model)["first"])
    np.testing.assert_array_equal(parts(other)["third"], [0.0, 0.0])
    assert np.any(parts(model)["first"])
    # The momenta in the file are by number; those of `second` are none of `third`.
    assert int(other.optimizer.iterations) == 0
    with pytest.raises(ValueError, match="`third` is missing"):
        other.load_weights(tmp_path / "flow.weights.h5")


def nested(depth):
    value = 2
    for _ in range(depth):
        value = [value]
    return value


NESTINGS = {
    "event_shape": lambda c: c["config"]["arguments"].update(event_shape=nested(400)),
    "an array": lambda c: c["config"]["arguments"].update(
        event_shape={"array": ["int32", [1], nested(400), "array"]}
    ),
    # Without the bound TensorFlow ends the process here.
    "a bijector": lambda c: c["config"]["arguments"].update(
        preprocessing={"bijector": ["Scale", {"scale": nested(400)}]}
    ),
    "name": lambda c: c["config"].update(name=nested(400)),
    "bits_per_dim": lambda c: c["config"].update(bits_per_dim=nested(400)),
    "dtype_policy": lambda c: c["config"].update(dtype_policy=nested(400)),
    "trainable_variables": lambda c: c["config"].update(trainable_variables=nested(400)),
    "learning rate": lambda c: c["compile_config"]["optimizer"]["config"].update(learning_rate=nested(400)),
    "optimized_variables": lambda c: c["compile_config"].update(optimized_variables=nested(400)),
}


@pytest.mark.parametrize("change", NESTINGS)
def test_deep_lists_do_not_end_the_process(change, saved):
    with pytest.raises(ValueError, match="config` has lists or dicts nested more than 100 deep"):
        keras.models.load_model(tampered(saved[1] / "flow.keras", NESTINGS[change]))


KINDS = {
    "name": (lambda c: c["config"].update(name=3), "`name` of the saved model must be a name or None; got 3"),
    "bits_per_dim": (lambda c: c["config"].update(bits_per_dim="yes"), "`bits_per_dim` .* True or False"),
    "dtype_policy": (lambda c: c["config"].update(dtype_policy=[1]), "`dtype_policy` .* got \\[1\\]"),
    "trainable_variables": (
        lambda c: c["config"].update(trainable_variables="ab"),
        "a list of names; got 'ab'",
    ),
    "optimized_variables": (
        lambda c: c["compile_config"].update(optimized_variables=[[1]]),
        "a list of names",
    ),
    "an array": (
        lambda c: c["config"]["arguments"].update(event_shape={"array": ["int8", [1], [300], "array"]}),
        "`arguments.event_shape` of the saved model does not describe a array",
    ),
    "many values": (
        lambda c: c["config"]["arguments"].update(event_shape=[2] * 2001),
        "`config` has more than 2000 values",
    ),
}


@pytest.mark.parametrize("change", KINDS)
def test_entries_of_another_kind(change, saved, monkeypatch):
    function, message = KINDS[change]
    monkeypatch.setattr(serialization, "_MAX_ITEMS", 2000, raising=False)
    with pytest.raises(ValueError, match=message):
        keras.models.load_model(tampered(saved[1] / "flow.keras", function))


def test_an_earlier_file_with_a_name_that_no_graph_takes_loads(saved):
    def rename(config):
        config["config"]["name"] = "my model"
        config["config"]["arguments"]["name"] = "Größe"

    with pytest.warns(UserWarning, match="changed to 'my_model'"):
        loaded = keras.models.load_model(tampered(saved[1] / "flow.keras", rename))
    assert (loaded.name, loaded.distribution.name) == ("my_model", "Gr__e")
    x = np.ones([3, 2], np.float32)
    np.testing.assert_array_equal(loaded.log_prob(x), saved[0].log_prob(x))


def test_weights_of_several_files(saved, tmp_path):
    model, other = saved[0], make_model(seed=2)
    model.save_weights(tmp_path / "flow.weights.json", max_shard_size=1e-7)
    assert len(list(tmp_path.iterdir())) > 2
    other.load_weights(tmp_path / "flow.weights.json")
    for name, value in parts(model).items():
        np.testing.assert_array_equal(parts(other)[name], value, err_msg=name)


def test_as_a_layer_it_loads_its_part_of_a_file(tmp_path):
    def make(seed):
        flow = sn.FlowModel(sn.dense_flow(2, seed=seed))
        data = keras.Input([2])
        return flow, keras.Model(data, keras.layers.Dense(1)(keras.ops.expand_dims(flow(data), -1)))

    (flow, outer), (other_flow, other) = make(1), make(2)
    for model in (outer, other):
        model.compile("adam", loss="mse")
        model.fit(np.ones([4, 2], np.float32), np.ones([4, 1]), verbose=0)
    outer.save_weights(tmp_path / "outer.weights.h5")
    other.load_weights(tmp_path / "outer.weights.h5")
    np.testing.assert_array_equal(other(np.ones([3, 2])), outer(np.ones([3, 2])))
    np.testing.assert_array_equal(flow.get_weights()[0], other_flow.get_weights()[0])
