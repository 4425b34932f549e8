"""Maps by networks against numpy: log-dets, surrogate gradients and inverses."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_selfnorm.math import networks

D, HIDDEN = 4, 6


@pytest.fixture
def weights(rng):
    """Of `f(x) = A x + V tanh(U x)`."""
    return {
        "linear": np.eye(D) + 0.2 * rng.normal(size=[D, D]),
        "first": rng.normal(size=[HIDDEN, D]) / np.sqrt(D),
        "second": 0.3 * rng.normal(size=[D, HIDDEN]) / np.sqrt(HIDDEN),
    }


def values(weights, x):
    return x @ weights["linear"].T + np.tanh(x @ weights["first"].T) @ weights["second"].T


def jacobians(weights, x):
    slopes = 1.0 - np.tanh(x @ weights["first"].T) ** 2
    return weights["linear"] + np.einsum("ih,bh,hj->bij", weights["second"], slopes, weights["first"])


def log_dets(weights, x):
    return np.linalg.slogdet(jacobians(weights, x))[1]


def as_function(weights):
    """The same map of tensors, and its variables."""
    variables = {name: tf.Variable(value) for name, value in weights.items()}

    def function(x):
        hidden = tf.tanh(tf.matmul(x, variables["first"], transpose_b=True))
        linear = tf.matmul(x, variables["linear"], transpose_b=True)
        return linear + tf.matmul(hidden, variables["second"], transpose_b=True)

    return function, variables


def finite_differences(function, weights, step=1e-6):
    """The gradients of a scalar function of the weights."""
    gradients = {}
    for name, value in weights.items():
        gradient = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            shifted = [dict(weights, **{name: value.copy()}) for _ in range(2)]
            shifted[0][name][index] += step
            shifted[1][name][index] -= step
            gradient[index] = (function(shifted[0]) - function(shifted[1])) / (2 * step)
        gradients[name] = gradient
    return gradients


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_the_log_det_and_its_gradient_are_exact(weights, rng, how):
    x = rng.normal(size=[5, D])
    function, variables = as_function(weights)

    def value_and_gradients(events):
        with tf.GradientTape() as tape:
            tape.watch(events)
            log_det = networks.log_det(function, events)
            total = tf.reduce_sum(log_det)
        return log_det, tape.gradient(total, {**variables, "x": events})

    call = (
        value_and_gradients if how == "eager" else tf.function(value_and_gradients, jit_compile=how == "xla")
    )
    log_det, gradients = call(tf.constant(x))
    np.testing.assert_allclose(log_det, log_dets(weights, x), rtol=1e-12)
    expected = finite_differences(lambda w: log_dets(w, x).sum(), weights)
    expected["x"] = finite_differences(lambda w: log_dets(weights, w["x"]).sum(), {"x": x})["x"]
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], atol=1e-8)


@pytest.mark.parametrize("count", [0, 1, 7, 9])
@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_chunks_of_a_batch_have_the_log_dets_of_the_whole(monkeypatch, weights, rng, how, count):
    monkeypatch.setattr(networks, "SMALL", 1)
    monkeypatch.setattr(networks, "_JACOBIAN_ENTRIES", 3 * D**2)
    x, shift = rng.normal(size=[count, D]), rng.normal(size=[count, 1])
    plain, _ = as_function(weights)
    signature = (tf.TensorSpec([None, D], tf.float64), tf.TensorSpec([None, 1], tf.float64))

    def log_det(events, condition):
        return networks.log_det(lambda a, c: plain(a + c), events, condition)

    call = (
        log_det
        if how == "eager"
        else tf.function(log_det, input_signature=signature, jit_compile=how == "xla")
    )
    np.testing.assert_allclose(
        call(tf.constant(x), tf.constant(shift)), log_dets(weights, x + shift), rtol=1e-12
    )


def test_a_map_without_a_gradient_is_singular():
    assert np.isneginf(networks.log_det(tf.ones_like, tf.zeros([2, 3]))).all()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_event_without_a_log_det_is_no_error(value):
    """The gradient of a singular matrix would be an error, and stop a training that should skip a batch."""
    x = tf.constant([[0.5, 2.0], [value, 1.0]], tf.float64)
    scale = tf.Variable(1.0, dtype=tf.float64)
    with tf.GradientTape() as tape:
        log_det = networks.log_det(lambda events: scale * events**2, x)
        total = log_det[0]
    np.testing.assert_allclose(log_det[0], np.log(4.0))
    assert not np.isfinite(log_det[1])
    gradient = tape.gradient(total, scale)
    if value == 0.0:
        np.testing.assert_allclose(gradient, 2.0)


def test_a_singular_solution_has_a_residual_and_is_no_error():
    z = tf.constant([[1.0], [-1.0], [np.nan]], tf.float64)
    _, residual = networks.solve(lambda x: tf.nn.relu(x), lambda z: z, z, tolerance=1e-9)
    np.testing.assert_array_equal(residual < 1e-9, [True, False, False])


def repeated(x):
    """Each event D times, with probes for which the mean of `v v^T` is the identity: nothing is random."""
    probes = np.sqrt(D) * np.repeat(np.eye(D), len(x), axis=0)
    return tf.constant(np.tile(x, [D, 1])), tf.constant(probes)


def surrogate_gradients(function, variables, inverse, x, probes):
    with tf.GradientTape() as tape:
        _, surrogate, _ = networks.surrogate_pass(function, inverse, x, tf.stop_gradient, probes)
        total = tf.reduce_sum(surrogate) / D
    return tape.gradient(total, variables)


def test_the_surrogate_with_a_basis_of_probes_has_the_trace_of_the_learned_inverse(weights, rng):
    x = rng.normal(size=[3, D])
    other = {name: value + 0.1 * rng.normal(size=value.shape) for name, value in weights.items()}
    function, variables = as_function(weights)
    inverse, _ = as_function(other)
    found = surrogate_gradients(function, variables, inverse, *repeated(x))
    learned = jacobians(other, values(weights, x))
    expected = finite_differences(lambda w: np.einsum("bij,bji->", learned, jacobians(w, x)), weights)
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], atol=1e-8)


def test_the_surrogate_of_the_true_inverse_has_the_exact_gradient(weights, rng):
    x = rng.normal(size=[3, D])
    matrix = weights["linear"]
    variable = tf.Variable(matrix)
    found = surrogate_gradients(
        lambda events: tf.matmul(events, variable, transpose_b=True),
        variable,
        lambda events: tf.matmul(events, tf.linalg.inv(tf.constant(matrix)), transpose_b=True),
        *repeated(x),
    )
    np.testing.assert_allclose(found, 3 * np.linalg.inv(matrix).T, rtol=1e-12)


def test_the_mean_over_random_probes_is_the_trace(weights, rng):
    x = np.repeat(rng.normal(size=[1, D]), 4000, axis=0)
    inverse, _ = as_function({**weights, "linear": np.eye(D)})
    direction = {name: rng.normal(size=value.shape) for name, value in weights.items()}
    probes = tf.constant(rng.choice([-1.0, 1.0], size=x.shape))
    scale = tf.Variable(0.0, dtype=tf.float64)
    with tf.autodiff.ForwardAccumulator(scale, tf.constant(1.0, tf.float64)) as accumulator:
        moved = {name: value + scale * direction[name] for name, value in weights.items()}

        def moved_function(events):
            hidden = tf.tanh(tf.matmul(events, moved["first"], transpose_b=True))
            linear = tf.matmul(events, moved["linear"], transpose_b=True)
            return linear + tf.matmul(hidden, moved["second"], transpose_b=True)

        _, surrogate, _ = networks.surrogate_pass(
            moved_function, inverse, tf.constant(x), tf.stop_gradient, probes
        )
    derivatives = accumulator.jvp(surrogate).numpy()
    step = 1e-6
    difference = [
        jacobians({n: v + sign * step * direction[n] for n, v in weights.items()}, x[:1]) for sign in (1, -1)
    ]
    learned = jacobians({**weights, "linear": np.eye(D)}, values(weights, x[:1]))
    trace = np.einsum("bij,bji->", learned, (difference[0] - difference[1]) / (2 * step))
    standard_error = derivatives.std() / np.sqrt(len(derivatives))
    assert standard_error > 0.0
    assert abs(derivatives.mean() - trace) < 4.0 * standard_error


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_products_with_the_jacobian_of_a_loop(weights, rng, how):
    """Recurrent networks are loops in a graph, which TensorFlow's forward mode does not take."""
    function, _ = as_function(weights)
    x, vectors = rng.normal(size=[5, D]), rng.normal(size=[5, D])

    def three_times(x):
        return tf.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, function(x)), (0, x), maximum_iterations=3
        )[1]

    def call(x, vectors):
        return networks.jacobian_product(three_times, x, vectors)

    if how != "eager":
        call = tf.function(call, jit_compile=how == "xla")
    output, products = call(tf.constant(x), tf.constant(vectors))
    for _ in range(3):
        vectors = np.einsum("bij,bj->bi", jacobians(weights, x), vectors)
        x = values(weights, x)
    np.testing.assert_allclose(output, x, rtol=1e-10)
    np.testing.assert_allclose(products, vectors, rtol=1e-10)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_the_solution_and_its_gradients(weights, rng, compiled):
    x = rng.normal(size=[5, D])
    z = values(weights, x)
    function, variables = as_function(weights)
    learned = np.linalg.inv(weights["linear"]) + 0.1 * rng.normal(size=[D, D])

    def value_and_gradients(latent):
        with tf.GradientTape() as tape:
            tape.watch(latent)
            solution, residual = networks.solve(
                function, lambda events: tf.matmul(events, learned, transpose_b=True), latent, tolerance=1e-12
            )
            total = tf.reduce_sum(tf.sin(solution))
        return solution, residual, tape.gradient(total, {**variables, "z": latent})

    call = tf.function(value_and_gradients) if compiled else value_and_gradients
    solution, residual, gradients = call(tf.constant(z))
    np.testing.assert_allclose(solution, x, atol=1e-11)
    np.testing.assert_allclose(residual, 0.0, atol=1e-12)
    # By the implicit function theorem: the gradient of z is J^-T cos(x).
    pulled = np.linalg.solve(np.swapaxes(jacobians(weights, x), 1, 2), np.cos(x)[..., np.newaxis])[..., 0]
    np.testing.assert_allclose(gradients["z"], pulled, atol=1e-9)
    expected = finite_differences(lambda w: -np.sum(pulled * values(w, x)), weights)
    for name in weights:
        np.testing.assert_allclose(gradients[name], expected[name], atol=1e-8)


def test_a_map_without_an_inverse_has_a_residual():
    z = tf.constant([[-1.0], [4.0]], tf.float64)
    _, residual = networks.solve(tf.square, lambda z: tf.sqrt(tf.abs(z) + 1.0), z, tolerance=1e-9)
    assert residual[0] > 0.5
    assert residual[1] < 1e-9


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e7])
def test_large_latents_have_the_residual_of_rounding(scale):
    """In float32 they have none of 1e-5."""
    z = scale * tf.random.stateless_normal([100, 3], [0, 1])
    x, residual = networks.solve(lambda y: 1.1 * y + 0.3 * tf.sin(y), lambda z: z / 1.1, z, tolerance=1e-5)
    assert np.max(residual) < 1e-3
    x = np.float64(x)
    np.testing.assert_allclose(1.1 * x + 0.3 * np.sin(x), z, atol=3e-6 * scale)


@pytest.mark.parametrize("scale", [1e4, 1e5])
def test_a_large_latent_hides_no_other_without_a_solution(scale):
    def function(x):
        return tf.concat([scale * x[:, :1], x[:, 1:] ** 2 + 1.0], axis=1)

    z = tf.constant([[2.0 * scale, 0.0]])
    _, residual = networks.solve(function, lambda z: z / scale, z, tolerance=1e-5)
    assert residual[0] > 1e-3
