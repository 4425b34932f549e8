"""The numbers that `tfp_selfnorm.plot` draws, and its errors."""

import csv
import pickle

import keras
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.figure import Figure
from matplotlib.text import Text

import tfp_selfnorm as sn
from tfp_selfnorm.math.ranks import binomial_interval
from tfp_selfnorm.plot.axes import spread

tfb, tfd = tfp.bijectors, tfp.distributions
BACKEND = mpl.get_backend()
NORMAL = tfd.MultivariateNormalDiag([0.5, -1.0], [1.0, 0.5])


@pytest.fixture
def posterior(rng):
    """Samples of the exact posterior of y ~ N(0, 1) given x ~ N(y, 1), which is N(x / 2, 1 / 2), and y."""
    y = rng.normal(size=[2000, 1])
    x = y + rng.normal(size=y.shape)
    return 0.5 * x + np.sqrt(0.5) * rng.normal(size=[99, 2000, 1]), y


def heights(line):
    """Those of a line of steps."""
    return line.get_ydata()[:-1]


def share_outside(line, band):
    """The share of the steps of a line that are outside the band."""
    low, high = band_of(band, line.get_xdata()[:-1] + 0.5)
    return np.mean((heights(line) < low) | (heights(line) > high))


def band_of(band, x):
    """The limits of a filled area at x."""
    vertices = band.get_paths()[0].vertices
    near = [vertices[np.isclose(vertices[:, 0], edge, atol=0.51), 1] for edge in x]
    return np.array([(values.min(), values.max()) for values in near]).T


def shifted(base):
    """The model of a base that its condition shifts."""
    coupling = sn.AffineCoupling(
        lambda c: tf.concat([-c, 0.0 * c], axis=-1), num_conditioning=0, event_ndims=1
    )
    flow = tfd.TransformedDistribution(base, coupling)
    return sn.ConditionalFlowModel(flow, condition_shape=base.event_shape)


def cdf(x):
    return tfd.Normal(np.float64(0.0), 1.0).cdf(x).numpy()


def test_the_density_of_a_model_sums_to_one_and_stands_where_it_is(ax):
    scale = tfb.Scale(tf.Variable([1.0, 1.0]))
    for flow in (NORMAL, sn.FlowModel(tfd.TransformedDistribution(NORMAL, scale))):
        drawn = sn.plot.density(flow, ((-8.0, 9.0), (-6.0, 4.0)), num_points=100, points=[[1.0, 2.0]])
        image = drawn.images[0]
        values, (left, right, bottom, top) = image.get_array(), image.get_extent()
        assert values.sum() * (right - left) * (top - bottom) / values.size == pytest.approx(1.0, abs=1e-5)
        row, column = np.unravel_index(np.argmax(values), values.shape)
        centre = left + (column + 0.5) * (right - left) / 100, bottom + (row + 0.5) * (top - bottom) / 100
        np.testing.assert_allclose(centre, [0.5, -1.0], atol=0.09)
        assert values.max() == pytest.approx(np.exp(NORMAL.log_prob(centre)), rel=1e-4)
        assert (image.origin, drawn.get_xlim(), drawn.get_ylim()) == ("lower", (-8.0, 9.0), (-6.0, 4.0))
        np.testing.assert_array_equal(drawn.collections[0].get_offsets(), [[1.0, 2.0]])
    assert sn.plot.density(NORMAL, (-2, 3), ax) is ax
    assert ax.images[0].get_extent() == [-2.0, 3.0, -2.0, 3.0]


def test_the_density_for_one_condition(ax):
    model = shifted(NORMAL)
    sn.plot.density(model, (-6, 6), ax, num_points=120, condition=[2.0, 3.0])
    row, column = np.unravel_index(np.argmax(ax.images[0].get_array()), [120, 120])
    np.testing.assert_allclose([-6 + 0.1 * column, -6 + 0.1 * row], [2.5, 2.0], atol=0.11)


def test_samples_have_the_density_of_the_points(ax):
    x = np.array([[0.1, 0.1], [0.2, 0.2], [3.9, 0.1], [9.0, 9.0], [np.nan, 1.0]])
    image = sn.plot.samples(x, ((0.0, 4.0), (0.0, 2.0)), ax, num_bins=2).images[0]
    # Cells of area 2; the fourth and the fifth of the points are out of view.
    np.testing.assert_allclose(image.get_array(), np.array([[2, 1], [0, 0]]) / (5 * 2.0))
    whole = sn.plot.samples(pd.DataFrame(x[:4]))
    array, (left, right, bottom, top) = whole.images[0].get_array(), whole.images[0].get_extent()
    assert array.sum() * (right - left) * (top - bottom) / array.size == pytest.approx(1.0)


def test_images_fill_a_square(ax):
    x = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    grid = sn.plot.images(x, 30, ax).images[0].get_array()
    assert grid.shape == (2 * 3 - 1, 3 * 4 - 1, 3)
    np.testing.assert_array_equal(grid[3:, :3, 0], np.rint(x[3] * 255 / 29))


def test_marginals_show_data_below_and_samples_above_the_diagonal(rng):
    data = pd.DataFrame(rng.normal(size=[300, 3]), columns=["a", "b", "c"])
    data.loc[7, "b"] = np.nan
    samples = rng.normal(size=[3000, 3]).astype(np.float32)
    figure = sn.plot.marginals(data, samples, num_bins=12)
    axes = np.reshape(figure.axes, [3, 3])
    assert [ax.get_xlabel() for ax in axes[2]] == [ax.get_ylabel() for ax in axes[:, 0]] == list("abc")
    np.testing.assert_array_equal(axes[2, 1].collections[0].get_offsets(), data[["b", "c"]])
    np.testing.assert_array_equal(axes[0, 1].collections[0].get_offsets(), samples[:2000, [1, 0]])
    for i, name in enumerate(data):
        for patch, column in zip(axes[i, i].patches, (data[name].dropna(), samples[:, i]), strict=True):
            values, edges, _ = patch.get_data()
            counts = np.histogram(column, edges)[0]
            np.testing.assert_allclose(values * np.diff(edges), counts / len(column))
            assert counts.sum() / len(column) > 0.97
        assert axes[2, i].get_xlim() == pytest.approx((edges[0], edges[-1]), rel=1e-6) or i < 2
    of_data = sn.plot.marginals(data, names=["x", "y", "z"], figure=Figure(layout="constrained").subfigures())
    assert [ax.axison for ax in of_data.axes] == [i >= j for i in range(3) for j in range(3)]
    assert of_data.axes[6].get_xlabel() == "x"


def history_of(epochs, **columns):
    history = keras.callbacks.History()
    history.epoch, history.history = epochs, columns
    return history


def test_learning_curves_of_a_history_a_mapping_and_a_file(tmp_path, ax):
    nll, validation = [3.0, 2.0, 1.5, 1.4], [3.1, 2.5, 2.0, 1.9]
    with open(tmp_path / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["epoch", "nll", "val_nll"], *([i, nll[i], validation[i] if i % 2 else "NA"] for i in range(4))]
        )
    sources = {
        "history": history_of([0, 1, 2, 3], nll=nll, val_nll=validation),
        "mapping": {"epoch": [1, 2, 3, 4], "nll": nll, "val_nll": validation, "note": ["a"] * 4},
        "every second epoch": history_of([0, 1, 2, 3], nll=nll, val_nll=validation[1::2]),
        "file": tmp_path / "log.csv",
    }
    for name, source in sources.items():
        drawn = sn.plot.learning_curves(source)
        training, validated = drawn.lines
        np.testing.assert_array_equal(training.get_xydata(), np.c_[1:5, nll])
        found, is_seldom = validated.get_xydata(), name in ("every second epoch", "file")
        expected = np.c_[1:5, validation][1::2] if is_seldom else np.c_[1:5, validation]
        np.testing.assert_array_equal(found[np.isfinite(found[:, 1])], expected)
        assert training.get_color() == validated.get_color() == sn.plot.COLORS[0]
        assert training.get_linestyle() != validated.get_linestyle()
        assert [text.get_text() for text in drawn.texts] == ["training", "validation"]
    sn.plot.learning_curves({"loss": [1.0], "bits": [2.0], "val_bits": [3.0]}, ax, names=["loss", "bits"])
    assert [line.get_color() for line in ax.lines] == [sn.plot.COLORS[i] for i in (0, 1, 1)]
    assert [text.get_text() for text in ax.texts] == ["loss, training", "bits, training", "bits, validation"]


@pytest.mark.parametrize("is_log", [False, True])
def test_labels_stand_at_the_ends_of_their_lines_and_do_not_overlap(is_log):
    figure = Figure(layout="constrained", dpi=80)
    ax = figure.subplots()
    ends = [1.0, 1.01, 1.02, 5.0, 5.0, 0.0]
    for i, end in enumerate(ends):
        ax.plot([0, 1, 2 + i, 9], [3.0, 2.0, end, np.nan], label=f"line {i}" + "\nand more" * (i == 1))
    sn.plot.label_lines(ax)
    ax.plot([0, 1], [1, 1])
    sn.plot.label_lines(ax)
    # After the labels: they follow.
    ax.set(yscale="log" if is_log else "linear", ylim=(0.5, 6.0))
    figure = pickle.loads(pickle.dumps(figure))
    figure.draw_without_rendering()
    (ax,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert [text.get_text()[:6] for text in ax.texts] == [f"line {i}" for i in range(6)]
    for i, box in enumerate(boxes):
        assert ax.bbox.x1 < box.x0 < box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert ax.texts[i].get_color() == ax.lines[i].get_color()
    for i, (text, end) in enumerate(zip(ax.texts, ends, strict=True)):
        place = ax.transData.transform([2 + i, max(end, 0.5)])
        assert abs(0.5 * (boxes[i].y0 + boxes[i].y1) - place[1]) < 3 * 1.25 * 9 * 80 / 72
        np.testing.assert_allclose(text.xycoords(None).transform([0.0, 0.0]), place)


def test_boxes_are_moved_as_little_as_can_be():
    moved = spread(np.array([4.0, 0.0, 0.5, 9.0]), np.array([1.0, 1.0, 2.0, 1.0]))
    np.testing.assert_allclose(moved, [4.0, -0.5, 1.0, 9.0])
    np.testing.assert_allclose(spread(np.array([1.0, 1.0, 1.0]), np.ones(3)), [0.0, 1.0, 2.0])


def test_the_errors_of_two_layers(make_layer, make_flow, ax):
    layers = [make_layer(4, name=name, inverse_is_exact=True) for name in ("first", "second", "third")]
    for layer, error in zip(layers, (0.5, 1e-3, np.nan), strict=True):
        # I - R W = c I has the relative error c on any vector.
        layer.forward_kernel.assign((1.0 - error) * np.linalg.inv(layer.inverse_kernel))
    x = np.random.default_rng(1).normal(size=[20, 4])
    for model in (make_flow(tfb.Chain(layers), 4), sn.FlowModel(make_flow(tfb.Chain(layers), 4))):
        drawn = sn.plot.inverse_errors(model, x)
        for line in drawn.lines[:2]:
            np.testing.assert_allclose(line.get_xdata(), [0.5, 1e-3, np.nan], rtol=1e-6)
            np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])
        names = [label.get_text() for label in drawn.get_yticklabels()]
        assert names == ["first", "second", "third (not finite)"]
        assert drawn.get_xlim() == pytest.approx((1e-3, 1.0)) or drawn.get_xlim() == pytest.approx((1e-4, 1))
    layers[1].forward_kernel.assign(np.linalg.inv(layers[1].inverse_kernel))
    (line,) = sn.plot.inverse_errors(make_flow(layers[1], 4), ax=ax).lines
    assert np.finfo(np.float64).eps <= line.get_xdata()[0] < 1e-14


def test_ranks_count_the_smaller_samples(rng):
    samples, y = rng.normal(size=[20, 7, 2]), rng.normal(size=[7, 2])
    expected = [[sum(s[i, j] < y[i, j] for s in samples) for j in range(2)] for i in range(7)]
    np.testing.assert_array_equal(sn.plot.ranks(samples, y), expected)
    np.testing.assert_array_equal(sn.plot.ranks(samples[..., 0], y[:, 0]), np.array(expected)[:, 0])


def test_binomial_intervals_hold_what_they_say():
    probability = np.array([0.0, 0.013, 0.5, 0.9, 1.0])
    low, high = binomial_interval(200, probability)
    assert (low[0], high[0], low[4], high[4]) == (0, 0, 200, 200)
    for p, first, last in zip(probability[1:4], low[1:4], high[1:4], strict=True):
        binomial = tfd.Binomial(np.float64(200.0), probs=p)
        masses = binomial.prob(np.arange(201.0)).numpy()
        # The quantiles: at most half a percent on each side, and more with one count less.
        assert masses[:first].sum() < 0.005 <= masses[: first + 1].sum()
        assert masses[last + 1 :].sum() <= 0.005 < masses[last:].sum()


def test_the_ranks_of_an_exact_posterior_are_uniform_and_those_of_a_wrong_one_are_not(posterior):
    samples, y = posterior
    ranks = sn.plot.ranks(samples, y)
    assert (ranks.min(), ranks.max(), ranks.dtype) == (0, 99, np.int64)
    wrong = np.c_[ranks, sn.plot.ranks(0.5 * samples, y), sn.plot.ranks(samples + 0.2, y)]
    ax = sn.plot.sbc_ranks(wrong, 99, names=["right", "narrow", "shifted"])
    outside = [share_outside(line, ax.collections[0]) for line in ax.lines[1:]]
    assert outside[0] <= 0.05
    assert min(outside[1:]) >= 0.3
    low, high = band_of(ax.collections[0], [10.5])
    assert (low[0], high[0]) == tuple(binomial_interval(2000, 0.05) / 100.0)
    for line, column in zip(ax.lines[1:], wrong.T, strict=True):
        counts = np.bincount(column, minlength=100).reshape(20, 5).sum(axis=1)
        np.testing.assert_allclose(heights(line), counts / 100.0)
    assert [line.get_label() for line in ax.lines[1:]] == ["right", "narrow", "shifted"]


def test_bins_of_ranks_that_no_number_divides(rng):
    """Of 0 to 100 ranks; with bins of different widths, the heights of uniform ranks are all 1."""
    line = sn.plot.sbc_ranks(np.tile(np.arange(101), 8), 100).lines[1]
    assert len(set(np.diff(line.get_xdata()))) == 2
    np.testing.assert_allclose(line.get_ydata(), 1.0)
    assert len(sn.plot.sbc_ranks([0, 1, 1, 0], 1, num_bins=20).lines[1].get_xdata()) == 3


def test_the_coverage_of_quantiles_is_the_closed_form(rng):
    """Quantiles of N(0, s) cover Phi(s Phi^-1(level)) of a standard normal."""
    samples, y = rng.normal(size=[199, 4000, 1]), pd.DataFrame({"a": rng.normal(size=4000)})
    scales = np.array([1.0, 0.5])
    ax = sn.plot.calibration(samples * scales, np.c_[y, y], names=["right", "narrow"])
    diagonal, *lines = ax.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    levels = np.arange(201) / 200
    quantiles = tfd.Normal(np.float64(0.0), 1.0).quantile(levels).numpy()
    for line, scale in zip(lines, scales, strict=True):
        np.testing.assert_allclose(line.get_xdata(), levels)
        np.testing.assert_allclose(line.get_ydata(), cdf(scale * quantiles), atol=0.03)
    # Of one level, counted by hand.
    below = np.mean(y.to_numpy() < np.sort(samples, axis=0)[49])
    assert lines[0].get_ydata()[50] == pytest.approx(below)


def test_the_calibration_of_a_conditional_model(rng):
    model = shifted(tfd.Sample(tfd.Normal(0.0, 1.0), [1]))
    x = rng.normal(size=[1000, 1])
    y = x + rng.normal(size=x.shape)
    observed = sn.plot.calibration(model, y, x=x, num_samples=50, seed=1).lines[1].get_xydata()
    assert observed.shape == (52, 2)
    assert np.abs(observed[:, 0] - observed[:, 1]).max() < 0.06


def test_bins_of_whole_numbers_have_one_number_each(rng):
    counts = rng.integers(0, 12, size=[4000, 1]).astype(float)
    (ax,) = sn.plot.marginals(counts, num_bins=30).axes
    heights, edges, _ = ax.patches[0].get_data()
    np.testing.assert_array_equal(edges[:-1] % 1, 0.5)
    first = np.flatnonzero(edges == -0.5)[0]
    shares = np.bincount(counts[:, 0].astype(int)) / len(counts)
    np.testing.assert_allclose(heights[first : first + 12], shares)
