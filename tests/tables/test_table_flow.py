"""Flows of tables: densities of raw columns, without a seam on circles, from fit to a file and an export."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm import tables
from tfp_selfnorm.structure.layers import bijectors_of

tfb, tfd = tfp.bijectors, tfp.distributions


def moved(flow, rng, scale=0.2):
    """The flow off its initial map, in which couplings do nothing."""
    for variable in sn.FlowModel(flow).trainable_variables:
        variable.assign(variable + scale * rng.normal(size=variable.shape))
    return flow


def wind(rng, number):
    """Speeds, and directions in degrees around north, which turn with the speed."""
    speed = rng.lognormal(1.0, 0.5, size=number)
    return {"speed": speed, "direction": np.mod(10.0 * speed + rng.normal(0.0, 40.0, size=number), 360.0)}


def integral(flow, columns, dtype):
    """The integral over all speeds and one turn, by sums over the logarithm of the speed and the angle."""
    logs, angles = np.linspace(-3.0, 5.0, 400), np.arange(0.0, 360.0, 1.0)
    grid = np.stack(np.meshgrid(np.exp(logs), angles, indexing="ij"), axis=-1)
    assert columns.names == ("speed", "direction")
    density = np.exp(flow.log_prob(tf.constant(grid, dtype)).numpy().astype(np.float64))
    return np.sum(density * grid[..., 0]) * (logs[1] - logs[0])


def check_no_seam(flow, dtype):
    """All around the circle the largest step shrinks with the distance; at the cut there is none."""

    def steps(speed, angles):
        points = np.stack([np.full(len(angles), speed), angles], axis=-1)
        log_prob = flow.log_prob(tf.constant(points, dtype)).numpy()
        return np.abs(np.diff(log_prob)), log_prob

    for speed in (1.0, 3.0, 6.0):
        angles = np.append(np.arange(0.0, 360.0, 0.02), 360.0)
        coarse, log_prob = steps(speed, angles)
        np.testing.assert_allclose(log_prob[0], log_prob[-1], atol=5e-3)
        # The ends of the splines may be anywhere. A seam is a step of the order of 1, at any distance.
        largest = np.argmax(coarse)
        fine, _ = steps(speed, np.linspace(angles[largest], angles[largest + 1], 21))
        assert fine.max() < 0.2 * coarse.max() + 2e-3


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_a_positive_and_a_periodic_column(dtype, rng):
    table = wind(rng, 2000)
    columns = tables.prepare(table, {"direction": tables.Periodic(360)}, dtype=dtype)
    assert columns.kinds[0] == tables.Positive()
    flow = moved(tables.table_flow(columns, angle_bins=4, angle_width=8, seed=1), rng, 0.1)
    np.testing.assert_allclose(integral(flow, columns, dtype), 1.0, atol=5e-3)
    check_no_seam(flow, dtype)
    samples = columns.to_dict(flow.sample(1000, seed=1))
    assert samples["speed"].min() > 0.0
    assert samples["direction"].min() >= 0.0
    assert samples["direction"].max() < 360.0


def test_fit_finds_the_density(rng):
    """Within 0.03 nats of the entropy of the process; the trained density still integrates to one."""
    columns = tables.prepare(wind(rng, 4000), {"direction": tables.Periodic(360)})
    model = sn.FlowModel.from_builder(tables.table_flow, columns=columns, seed=1)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 15 * 16)))
    train, test = wind(rng, 4000), wind(rng, 4000)
    model.fit(columns.to_array(train), epochs=15, batch_size=250, shuffle=False, verbose=0)
    turns = (test["direction"] - 10.0 * test["speed"])[:, None] + 360.0 * np.arange(-20, 20)
    log_angle = np.log(np.sum(np.exp(-0.5 * (turns / 40.0) ** 2), axis=1) / (40.0 * np.sqrt(2.0 * np.pi)))
    log_speed = -0.5 * ((np.log(test["speed"]) - 1.0) / 0.5) ** 2 - np.log(
        test["speed"] * 0.5 * np.sqrt(2.0 * np.pi)
    )
    known = -np.mean(log_angle + log_speed)
    nll = -np.mean(model.log_prob(columns.to_array(test)))
    assert known - 0.01 < nll < known + 0.03
    np.testing.assert_allclose(integral(model.distribution, columns, tf.float32), 1.0, atol=5e-3)
    check_no_seam(model.distribution, tf.float32)


def all_kinds(rng, number=60):
    table = {
        "phase": rng.uniform(0.0, 1.0, size=number),
        "real": 1e3 + rng.normal(size=number),
        "hour": rng.uniform(0.0, 24.0, size=number),
        "count": rng.integers(0, 5, size=number),
        "share": rng.beta(2.0, 3.0, size=number),
        "amount": rng.lognormal(size=number),
        "tail": rng.standard_t(1.5, size=number),
    }
    kinds = {
        "phase": tables.Periodic(1),
        "hour": tables.Periodic(24),
        "share": tables.Bounded(0, 1),
        "real": "real",
        "amount": "positive",
        "tail": "heavy_tailed",
    }
    return table, tables.prepare(table, kinds, dtype=tf.float64)


@pytest.mark.parametrize("builder", [sn.coupling_flow, sn.autoregressive_flow, sn.dense_flow])
def test_all_kinds_at_once_are_a_change_of_variables(builder, rng):
    """`log_prob` is the normal density of the latents and the Jacobian by differentiation; samples invert."""
    table, columns = all_kinds(rng)
    options = {"width": 8} if builder is sn.coupling_flow else {}
    flow = tables.table_flow(columns, flow_builder=builder, angle_bins=4, angle_width=8, seed=1, **options)
    flow = sn.exact(moved(flow, rng, 0.1))
    x = columns.dequantize(table, seed=1)[:8]
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = flow.bijector.inverse(tf.identity(x))
    jacobian = tape.batch_jacobian(z, x)
    expected = -0.5 * np.sum(z**2 + np.log(2.0 * np.pi), axis=1) + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(flow.log_prob(tf.identity(x)), expected, rtol=1e-8)
    np.testing.assert_allclose(flow.bijector.forward(tf.identity(z)), x, rtol=1e-7)
    # The latents of the angles stand last, and take no part in the others.
    np.testing.assert_allclose(jacobian[:, :5, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(jacobian[:, :5, 2], 0.0, atol=1e-12)
    turned = x + tf.constant([2.0, 0.0, -48.0, 0.0, 0.0, 0.0, 0.0], tf.float64)
    np.testing.assert_allclose(flow.log_prob(turned), expected, rtol=1e-8)


def test_angles_alone(rng):
    """Two angles whose sum is known better than each: a torus, as in the tests of normflows and zuko."""
    first = rng.uniform(-np.pi, np.pi, size=3000)
    second = np.mod(first + rng.normal(0.0, 0.3, size=3000) + np.pi, 2.0 * np.pi) - np.pi
    circle = tables.Periodic(2.0 * np.pi, low=-np.pi)
    columns = tables.prepare({"a": first, "b": second}, {"a": circle, "b": circle})
    model = sn.FlowModel.from_builder(tables.table_flow, columns=columns, seed=1)
    x = np.stack([first, second], axis=-1).astype(np.float32)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 12 * 12)))
    model.fit(x, epochs=12, batch_size=250, shuffle=False, verbose=0)
    entropy = np.log(2.0 * np.pi) + 0.5 * np.log(2.0 * np.pi * np.e * 0.3**2)
    assert abs(model.evaluate(x, verbose=0, return_dict=True)["nll"] - entropy) < 0.06
    ends = [[np.pi, 2.0], [-np.pi, 2.0], [1.0, np.pi], [1.0, -np.pi]]
    at = model.log_prob(tf.constant(ends, tf.float32)).numpy()
    np.testing.assert_allclose(at[[0, 2]], at[[1, 3]], atol=1e-3)
    grid = np.stack(np.meshgrid(*2 * [np.arange(-np.pi, np.pi, np.pi / 100)], indexing="ij"), axis=-1)
    total = np.exp(model.log_prob(tf.constant(grid, tf.float32))).sum() * (np.pi / 100) ** 2
    np.testing.assert_allclose(total, 1.0, atol=5e-3)


def test_files_and_exports_hold_the_columns(rng, tmp_path):
    table, _ = all_kinds(rng)
    table = {name: table[name] for name in ("hour", "amount", "count")}
    columns = tables.prepare(table, {"hour": tables.Periodic(24), "amount": "positive"})
    model = sn.FlowModel.from_builder(
        tables.table_flow, columns=columns, num_layers=1, num_bins=2, width=4, angle_bins=2, angle_width=4
    )
    model.compile("adam")
    x = columns.dequantize(table, seed=1).numpy()
    model.fit(x, verbose=0)
    model.save(tmp_path / "flow.keras")
    model.export(tmp_path / "export")
    loaded, exported = (
        keras.models.load_model(tmp_path / "flow.keras"),
        tf.saved_model.load(tmp_path / "export"),
    )
    np.testing.assert_array_equal(loaded.log_prob(x), model.log_prob(x))
    np.testing.assert_allclose(exported.log_prob(tf.constant(x)), model.log_prob(x), rtol=1e-4)
    assert exported.sample(3, [0, 1]).shape == (3, 3)
    (column_map,) = bijectors_of(tables.ColumnMap, loaded.distribution)
    assert column_map.columns == columns


def test_the_preprocessing_goes_into_each_builder(rng, tmp_path):
    """Whitened by the one call that whitens, saved whole, and the same as maps by hand."""
    table = {"a": rng.lognormal(size=300), "b": 1e4 + 100.0 * rng.normal(size=300)}
    columns = tables.prepare(table, {"a": "positive"})
    x = columns.to_array(table)
    for builder, options in ((sn.dense_flow, {}), (sn.coupling_flow, {"num_layers": 1, "width": 4})):
        model = sn.FlowModel.from_builder(
            builder, event_shape=2, preprocessing=columns.preprocessing, **options
        )
        model.adapt(x, whitens=True)
        model.save(tmp_path / "flow.keras")
        loaded = keras.models.load_model(tmp_path / "flow.keras")
        np.testing.assert_array_equal(loaded.log_prob(x), model.log_prob(x))
        by_hand = sn.Standardize([*columns.means], [*columns.deviations])
        kinds = tfb.Blockwise([tfb.Exp(), tfb.Identity()])
        latents = by_hand.inverse(kinds.inverse(tf.constant(x)))
        np.testing.assert_allclose(
            columns.preprocessing.inverse(tf.constant(x)), latents, rtol=1e-5, atol=1e-5
        )


def test_a_condition_turns_the_angle(rng):
    """p(direction, speed | mean direction): the angle of the condition goes into the networks of both."""
    known = rng.uniform(-1.0, 1.0, size=[3000, 1])
    table = wind(rng, 3000)
    table["direction"] = np.mod(90.0 * known[:, 0] + rng.normal(0.0, 20.0, size=3000), 360.0)
    columns = tables.prepare(table, {"direction": tables.Periodic(360)})
    model = sn.ConditionalFlowModel.from_builder(
        tables.table_flow, columns=columns, condition_shape=1, num_layers=1, width=16, seed=1
    )
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, 20 * 12)))
    model.fit(known, columns.to_array(table), epochs=20, batch_size=250, shuffle=False, verbose=0)
    sample = columns.to_dict(model.sample(500, [[-0.5], [0.5]], seed=1))["direction"]
    turns = np.angle(np.mean(np.exp(1j * np.radians(sample)), axis=0), deg=True)
    np.testing.assert_allclose(turns, [-45.0, 45.0], atol=8.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": {}}, TypeError, "`columns` must be the Columns that `tables.prepare` makes"),
        ({"dtype": tf.float32}, TypeError, "`dtype` of the builder comes from `columns`"),
        ({"event_shape": 2}, TypeError, "`event_shape` of the builder comes from `columns`"),
        (
            {"flow_builder": "dense_flow"},
            TypeError,
            "`flow_builder` must be a function such as `sn.dense_flow`",
        ),
        ({"angle_bins": 1}, ValueError, "`angle_bins` must be"),
        ({"angle_width": 0}, ValueError, "`angle_width` must be"),
        ({"base": tfd.MultivariateNormalDiag(tf.zeros(1))}, ValueError, "`base` must be None with periodic"),
        ({"condition_shape": (2, 3)}, ValueError, "`condition_shape` must be one positive size"),
        ({"num_layer": 2}, TypeError, "num_layer"),
    ],
)
def test_bad_arguments(options, error, message, rng):
    columns = tables.prepare(wind(rng, 50), {"direction": tables.Periodic(360)})
    with pytest.raises(error, match=message):
        tables.table_flow(**{"columns": columns, **options})


def test_a_model_from_the_builder_with_a_builder_of_its_own(tmp_path, rng):
    columns = tables.prepare({"a": rng.normal(size=50), "b": rng.normal(size=50)})
    options = {"columns": columns, "flow_builder": sn.dense_flow, "num_layers": 1, "seed": 1}
    model = sn.FlowModel.from_builder(tables.table_flow, **options)
    model.save(tmp_path / "flow.keras")
    x = rng.normal(size=[3, 2]).astype(np.float32)
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    np.testing.assert_array_equal(loaded.log_prob(x), tables.table_flow(**options).log_prob(x))


def test_a_loaded_model_has_the_columns(tmp_path, rng):
    columns = tables.prepare(
        {"count": rng.poisson(3.0, size=100), "angle": rng.uniform(0, 6, size=100)},
        kinds={"angle": tables.Periodic(2 * np.pi)},
    )
    model = sn.FlowModel.from_builder(tables.table_flow, columns=columns)
    model.save(tmp_path / "flow.keras")
    assert repr(keras.models.load_model(tmp_path / "flow.keras").columns) == repr(columns)
    assert sn.FlowModel(sn.dense_flow(2)).columns is None
