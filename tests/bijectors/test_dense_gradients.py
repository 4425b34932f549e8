"""Gradients against the paper's formulas, written out in numpy."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm import Reconstruction, SelfNormDense, training_scope
from tfp_selfnorm.math import dense

tfd = tfp.distributions

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
SIZES = [1, 6, 16]
BATCHES = [(), (5,), (2, 3)]
INVERSIONS = ["learned", "exact"]
SCOPES = {
    "held 0": lambda layer: training_scope(None),
    "held log-det": lambda layer: training_scope(None, {layer: layer.exact_log_det()}),
    "outside": lambda layer: contextlib.nullcontext(),
}


def values_of(layer):
    return layer.inverse_kernel.numpy(), layer.forward_kernel.numpy(), layer.bias.numpy()


def nll_gradients(flow, layer, x, scope="held 0", scale=1.0, reduce=tf.reduce_mean):
    """Of the reduced NLL, with respect to W, R, bias and x."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        with SCOPES[scope](layer):
            loss = -scale * reduce(flow.log_prob(tf.identity(x)))
    return tape.gradient(loss, [layer.inverse_kernel, layer.forward_kernel, layer.bias, x])


def paper_gradients(layer, x, mixture):
    """PAPER: ascend mixture (d_z x^T + R^T), and -(1 - mixture) (d_x z'^T + W^T); means over the batch."""
    w, r, bias = values_of(layer)
    rows = x.reshape(-1, x.shape[-1])
    d_w, d_r, d_bias = np.zeros_like(w), np.zeros_like(r), np.zeros_like(bias)
    d_rows = np.zeros_like(rows)
    for i, row in enumerate(rows):
        z_prime = w @ row
        d_z = -(z_prime + bias)  # of the standard normal log density
        d_x = w.T @ d_z
        d_w += mixture * (np.outer(d_z, row) + r.T)
        d_r += (1 - mixture) * (-np.outer(d_x, z_prime) - w.T)
        d_bias += d_z
        d_rows[i] = d_x
    return [-g / len(rows) for g in (d_w, d_r, d_bias, d_rows.reshape(x.shape))]


def exact_gradients(layer, x):
    """Of the mean NLL, whose log-det has the gradient W^-T; R plays no part in it."""
    w, _, bias = values_of(layer)
    rows = x.reshape(-1, x.shape[-1])
    d_z = -(rows @ w.T + bias) / len(rows)
    return -(d_z.T @ rows + np.linalg.inv(w).T), None, -d_z.sum(axis=0), -(d_z @ w).reshape(x.shape)


def check_gradients(found, expected):
    for gradient, formula in zip(found, expected, strict=True):
        assert (gradient is None) == (formula is None)
        if formula is not None:
            np.testing.assert_allclose(gradient, formula, **TOLERANCE)


@pytest.mark.parametrize("scope", ["held 0", "held log-det"])
@pytest.mark.parametrize("mixture", [0.5, 0.3, 0.0])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_self_norm_gradients_are_the_papers(make_layer, make_flow, rng, size, batch, mixture, scope):
    layer = make_layer(size, mixture=mixture)
    x = rng.normal(size=[*batch, size])
    found = nll_gradients(make_flow(layer, size), layer, x, scope)
    check_gradients(found, paper_gradients(layer, x, mixture))


def test_mixture_one_leaves_r_without_a_gradient(make_layer, make_flow, rng):
    layer = make_layer(6, mixture=1.0)
    x = rng.normal(size=[5, 6])
    d_w, d_r, *_ = nll_gradients(make_flow(layer, 6), layer, x)
    assert d_r is None
    np.testing.assert_allclose(d_w, paper_gradients(layer, x, 1.0)[0], **TOLERANCE)


@pytest.mark.parametrize("scope", ["held 0", "held log-det"])
@pytest.mark.parametrize("size", SIZES)
def test_exact_and_relative_gradients(make_layer, make_flow, rng, size, scope):
    x = rng.normal(size=[5, size])
    for gradient in ("exact", "relative"):
        layer = make_layer(size, gradient=gradient)
        w = layer.inverse_kernel.numpy()
        d_w, *others = exact_gradients(layer, x)
        expected = d_w @ w.T @ w if gradient == "relative" else d_w
        check_gradients(nll_gradients(make_flow(layer, size), layer, x, scope), [expected, *others])


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"mixture": mixture, "inversion": inversion}
            for mixture in (0.0, 0.3, 0.5, 1.0)
            for inversion in INVERSIONS
        ),
        *(
            {"gradient": name, "inversion": inversion}
            for name in ("exact", "relative")
            for inversion in INVERSIONS
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_outside_of_a_scope_no_option_changes_the_exact_gradient(
    make_layer, make_flow, rng, size, batch, options
):
    layer = make_layer(size, **options)
    x = rng.normal(size=[*batch, size])
    found = nll_gradients(make_flow(layer, size), layer, x, "outside")
    check_gradients(found, exact_gradients(layer, x))


@pytest.mark.parametrize("count", [1, 5, 6, 7, None])
@pytest.mark.parametrize("large", [6, 7], ids=["by the rows", "by the kernel"])
def test_products_of_large_kernels_with_few_and_many_rows(rng, monkeypatch, large, count):
    monkeypatch.setattr(dense, "_LARGE", large)
    kernel, x = rng.normal(size=[6, 6]), rng.normal(size=[count or 8, 6])
    signature = [tf.TensorSpec([6, 6], tf.float64), tf.TensorSpec([count, 6], tf.float64)]
    found = tf.function(dense.matvec, input_signature=signature)(kernel, x)
    np.testing.assert_allclose(found, x @ kernel.T, **TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
def test_with_the_true_inverse_w_has_half_the_exact_gradient(make_layer, make_flow, rng, size):
    layer = make_layer(size, inverse_is_exact=True)
    exact_layer = layer.copy(gradient="exact")
    x = rng.normal(size=[5, size])
    self_norm = nll_gradients(make_flow(layer, size), layer, x)
    exact = nll_gradients(make_flow(exact_layer, size), exact_layer, x)
    np.testing.assert_allclose(self_norm[0], 0.5 * exact[0].numpy(), **TOLERANCE)
    np.testing.assert_allclose(self_norm[2], exact[2], **TOLERANCE)
    np.testing.assert_allclose(self_norm[3], exact[3], **TOLERANCE)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("gradient", ["self_norm", "exact", "relative"])
def test_a_scaled_loss_scales_every_gradient(make_layer, make_flow, rng, gradient, scope):
    layer = make_layer(6, gradient=gradient)
    flow = make_flow(layer, 6)
    x = rng.normal(size=[8, 6])
    once = nll_gradients(flow, layer, x, scope)
    for scaled in (
        nll_gradients(flow, layer, x, scope, scale=128.0),
        nll_gradients(flow, layer, x, scope, scale=16.0, reduce=tf.reduce_sum),
    ):
        for one, many in zip(once, scaled, strict=True):
            assert (one is None) == (many is None)
            if one is not None:
                np.testing.assert_allclose(many, 128.0 * one.numpy(), **TOLERANCE)


@pytest.mark.parametrize("scope", SCOPES)
def test_micro_batches_add_up(make_layer, make_flow, rng, scope):
    layer = make_layer(6)
    flow = make_flow(layer, 6)
    x = rng.normal(size=[8, 6])
    whole, *halves = (nll_gradients(flow, layer, part, scope)[:3] for part in (x, x[:4], x[4:]))
    for gradient, first, second in zip(whole, *halves, strict=True):
        assert (gradient is None) == (first is None) == (second is None)
        if gradient is not None:
            np.testing.assert_allclose(gradient, (first + second) / 2.0, **TOLERANCE)
    assert (whole[1] is None) == (scope == "outside")


@pytest.mark.parametrize("scope", SCOPES)
def test_forward_direction_has_the_same_gradients_with_the_roles_exchanged(make_layer, rng, scope):
    layer = make_layer(6)
    w, r, bias = values_of(layer)
    x, d_y = rng.normal(size=[5, 6]), rng.normal(size=[5, 6])
    point = tf.constant(x)
    with tf.GradientTape() as tape, SCOPES[scope](layer):
        tape.watch(point)
        y = layer.forward(tf.identity(point))
        loss = tf.reduce_mean(
            tf.reduce_sum(d_y * y, axis=-1) + layer.forward_log_det_jacobian(tf.identity(point))
        )
    found = tape.gradient(loss, [layer.forward_kernel, layer.inverse_kernel, layer.bias, point])
    centred = x - bias
    y_prime, d_x = centred @ r.T, d_y @ r
    if scope == "outside":
        of_kernels = [d_y.T @ centred / 5 + np.linalg.inv(r).T, None]
    else:
        of_kernels = [0.5 * (d_y.T @ centred / 5 + w.T), 0.5 * (-d_x.T @ y_prime / 5 - r.T)]
    check_gradients(found, [*of_kernels, -d_x.mean(axis=0), d_x / 5])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("gradient", ["self_norm", "exact", "relative"])
def test_exact_inversion_has_the_gradients_of_the_solve(make_layer, rng, gradient, scope):
    """The whole ones, whatever the mixture; the log-det's is -R^T where the learned inverse is to enter."""
    layer = make_layer(4, gradient=gradient, inversion="exact")
    x = tf.constant(rng.normal(size=[3, 4]))
    kernel = tf.Variable(layer.inverse_kernel)
    with tf.GradientTape() as tape, SCOPES[scope](layer):
        y = layer.forward(x)
        loss = tf.reduce_sum(tf.sin(y)) + layer.forward_log_det_jacobian(tf.identity(x))
    found = tape.gradient(loss, [layer.inverse_kernel, layer.forward_kernel])
    with tf.GradientTape() as tape:
        y = (x - layer.bias) @ tf.linalg.inv(kernel, adjoint=True)
        loss = tf.reduce_sum(tf.sin(y))
    w, r, _ = values_of(layer)
    of_log_det = r.T if gradient == "self_norm" and scope != "outside" else np.linalg.inv(w).T
    np.testing.assert_allclose(found[0], tape.gradient(loss, kernel) - of_log_det, rtol=1e-9, atol=1e-9)
    assert found[1] is None


@pytest.mark.parametrize("mixture", [0.3, 0.0])
def test_the_log_det_of_an_exact_inversion_has_its_whole_gradient(make_layer, rng, mixture):
    """The solve trains W alone, whatever the mixture, and so must its log-det; R is exact here."""
    layer = make_layer(4, inverse_is_exact=True, mixture=mixture, inversion="exact")
    w, x = layer.inverse_kernel.numpy(), tf.constant(rng.normal(size=[3, 4]))
    held, kernels = {layer: layer.exact_log_det()}, [layer.inverse_kernel, layer.forward_kernel]
    with tf.GradientTape(persistent=True) as tape, training_scope(None, held):
        before = layer.forward_log_det_jacobian(tf.identity(x))
        after = layer.inverse_log_det_jacobian(layer.forward(x))
    for value, sign in ((before, -1.0), (after, 1.0)):
        np.testing.assert_allclose(value, sign * np.linalg.slogdet(w)[1], **TOLERANCE)
        d_w, d_r = tape.gradient(value, kernels)
        np.testing.assert_allclose(d_w, sign * np.linalg.inv(w).T, **TOLERANCE)
        assert d_r is None


def test_a_batch_of_kernels_has_the_gradients_of_single_ones(rng):
    kernels = np.eye(3) + 0.3 * rng.normal(size=[2, 3, 3])
    others = np.linalg.inv(kernels) + 0.1 * rng.normal(size=[2, 3, 3])
    biases = rng.normal(size=[2, 3])
    x = rng.normal(size=[5, 1, 3])

    def gradients(forward_kernel, inverse_kernel, bias, x, weight):
        layer = SelfNormDense(tf.Variable(forward_kernel), tf.Variable(inverse_kernel), tf.Variable(bias))
        flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(3, tf.float64)), layer)
        x = tf.constant(x)
        with tf.GradientTape() as tape, training_scope(Reconstruction(weight=weight)) as scope:
            tape.watch(x)
            loss = -tf.reduce_sum(flow.log_prob(tf.identity(x))) + scope.reconstruction_loss()
        return tape.gradient(loss, [layer.forward_kernel, layer.inverse_kernel, layer.bias, x])

    # The error is a mean over the batch of the data and of the kernels.
    batched = gradients(others, kernels, biases, x, weight=2.0)
    single = [gradients(others[i], kernels[i], biases[i], x[:, 0], weight=1.0) for i in range(2)]
    for i in range(2):
        for together, alone in zip(batched[:3], single[i][:3], strict=True):
            np.testing.assert_allclose(together[i], alone, **TOLERANCE)
    np.testing.assert_allclose(batched[3][:, 0], single[0][3] + single[1][3], **TOLERANCE)


def numpy_error(kind, w, r, x, cut_w, cut_z):
    """The error as a function of W and R; `cut_w` and `cut_z` are what the graph holds fixed."""
    first = x - x @ (cut_w if kind == "inverse_only" else w).T @ r.T
    data = np.mean(np.sum(first**2, axis=-1))
    if kind != "symmetric":
        return data
    second = cut_z - cut_z @ r.T @ w.T
    return 0.5 * data + 0.5 * np.mean(np.sum(second**2, axis=-1))


@pytest.mark.parametrize("batch", [(5,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["data", "symmetric", "inverse_only"])
def test_reconstruction_gradients_are_finite_differences(make_layer, rng, kind, batch):
    size, step = 4, 1e-6
    layer = make_layer(size)
    w, r, _ = values_of(layer)
    data = rng.normal(size=[*batch, size])
    x = tf.constant(data)
    with tf.GradientTape() as tape, training_scope(Reconstruction(kind, weight=3.0)) as scope:
        tape.watch(x)
        layer.inverse(tf.identity(x))
        loss = scope.reconstruction_loss()
    found = tape.gradient(
        loss,
        [layer.inverse_kernel, layer.forward_kernel, x],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    rows = data.reshape(-1, size)
    fixed = (rows, w, rows @ w.T)
    np.testing.assert_allclose(loss, 3.0 * numpy_error(kind, w, r, *fixed), rtol=1e-12)
    for i in range(size):
        for j in range(size):
            unit = np.zeros([size, size])
            unit[i, j] = step
            for gradient, up, down in (
                (found[0], (w + unit, r), (w - unit, r)),
                (found[1], (w, r + unit), (w, r - unit)),
            ):
                slope = (numpy_error(kind, *up, *fixed) - numpy_error(kind, *down, *fixed)) / (2 * step)
                np.testing.assert_allclose(gradient[i, j], 3.0 * slope, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found[2], 0.0)


def test_probes_follow_the_event_and_not_the_batch(make_layer):
    layer = make_layer(4)
    layer.forward_kernel.assign(np.zeros([4, 4]))
    for batch in ([], [3], [2, 3]):
        with training_scope(Reconstruction("probes", num_probes=50_000)) as scope:
            layer.inverse(tf.zeros([*batch, 4], tf.float64))
            np.testing.assert_allclose(scope.reconstruction_loss(), 4.0, rtol=0.03)


def test_probe_loss_is_the_mean_over_many_probes(make_layer):
    layer = make_layer(4)
    w, r, _ = values_of(layer)
    with training_scope(Reconstruction("probes", num_probes=200_000)) as scope:
        layer.inverse(tf.zeros([1, 4], tf.float64))
        loss = scope.reconstruction_loss()
    np.testing.assert_allclose(loss, np.sum((np.eye(4) - w @ r) ** 2), rtol=0.02)
