"""Maps by networks: the log-determinant of their Jacobian, its surrogate gradient, and their inverse.

A map takes a batch of events `[B, *event]`, and perhaps conditions `[B, ...]`, to events of the same shape.
It must treat each event alone. Draxler et al., "Free-form flows", AISTATS 2024.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math.linear import Maps, differentiated_once, log_abs_det

Map = Callable[..., tf.Tensor]

# Up to this number of dimensions the exact gradient of a log-det costs about as much as its surrogate.
SMALL = 8
# The number of entries of the Jacobians that are computed at once.
_JACOBIAN_ENTRIES = 2**22
_ZERO = tf.UnconnectedGradients.ZERO


def log_det(function: Map, x: tf.Tensor, *conditions: tf.Tensor) -> tf.Tensor:
    """`log |det J|` in nats of the map at each event, exact, with an exact gradient.

    It costs D products of a vector with the Jacobian, and two factorizations, O(D^3), for each event. Chunks
    of the batch follow one another, so that the Jacobians of a chunk have at most 4 million entries. Where
    the Jacobian is singular or not finite, the log-det is not finite, and its gradient is 0.
    """
    largest_chunk = max(1, _JACOBIAN_ENTRIES // _size(x) ** 2)

    def of_chunk(inputs):
        matrix, is_regular, values = _regular(jacobian(function, *inputs))
        return tf.where(is_regular, log_abs_det(matrix), values)

    # The loop over chunks costs time in each step; up to 8 dimensions any batch is one chunk.
    if _size(x) <= SMALL:
        return of_chunk((x, *conditions))
    return in_chunks(of_chunk, (x, *conditions), largest_chunk, tf.TensorSpec([None], x.dtype))


def in_chunks(
    function: Callable, inputs: Sequence[tf.Tensor], largest_chunk: int, signature: tf.TensorSpec
) -> tf.Tensor:
    """A function of a tuple of batches, for chunks of the batches that follow one another.

    Args:
      function: the function. It treats each event alone.
      inputs: tensors `[B, ...]`.
      largest_chunk: the largest number of events in a chunk.
      signature: shape and dtype of the output of the function.
    """
    if 0 < (inputs[0].shape[0] or 0) <= largest_chunk:
        return function(tuple(inputs))
    count = tf.shape(inputs[0])[0]
    chunk = tf.clip_by_value(count, 1, largest_chunk)
    # The last event fills the last chunk, and an event of zeros an empty batch.
    order = tf.minimum(tf.range(tf.maximum(-(-count // chunk), 1) * chunk), tf.maximum(count - 1, 0))
    inputs = [tf.concat([value, tf.zeros([1, *value.shape[1:]], value.dtype)], 0) for value in inputs]
    shape = tf.stack([-1, chunk])
    chunks = [
        tf.ensure_shape(
            tf.reshape(tf.gather(value, order), tf.concat([shape, value.shape[1:]], axis=0)),
            [None, None, *value.shape[1:]],
        )
        for value in inputs
    ]
    outputs = tf.map_fn(function, tuple(chunks), fn_output_signature=signature)
    return tf.reshape(outputs, [-1, *signature.shape[1:]])[:count]


def _regular(matrices):
    """The matrices, with the identity instead of each that has no inverse; whether each has one; log-dets."""
    log_dets = log_abs_det(tf.stop_gradient(matrices))
    is_regular = tf.math.is_finite(log_dets)
    identity = tf.eye(matrices.shape[-1], dtype=matrices.dtype)
    # The inverse of another matrix, which is in the gradient of the log-det too, would be an error.
    return tf.where(is_regular[:, tf.newaxis, tf.newaxis], matrices, identity), is_regular, log_dets


def jacobian(function: Map, x: tf.Tensor, *conditions: tf.Tensor) -> tf.Tensor:
    """The Jacobian of the map at each event, `[B, D, D]`."""
    size, count, is_eager = _size(x), tf.shape(x)[0], tf.executing_eagerly()
    # TensorFlow divides by the size of the batch. An empty batch gets an event of zeros.
    inputs = [_padded(value, 1 - tf.minimum(count, 1)) for value in (x, *conditions)]
    if is_eager:
        inputs = [tf.repeat(value, size, axis=0) for value in inputs]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs[0])
        output = function(*inputs)
    if is_eager:
        rows = tf.tile(tf.eye(size, dtype=output.dtype), [tf.shape(inputs[0])[0] // size, 1])
        matrix = tape.gradient(output, inputs[0], tf.reshape(rows, tf.shape(output)), _ZERO)
    else:
        # This vectorizes the backward pass alone. In eager code it would be traced in each call.
        matrix = tape.batch_jacobian(output, inputs[0], unconnected_gradients=_ZERO)
    return tf.reshape(matrix, [-1, size, size])[:count]


def _padded(x, number):
    """`x` with events of zeros behind it."""
    return tf.ensure_shape(tf.pad(x, [[0, number]] + [[0, 0]] * (x.shape.rank - 1)), [None, *x.shape[1:]])


def jacobian_product(function: Map, x: tf.Tensor, vector: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The map of each event, and the product of its Jacobian with a vector.

    The product in reverse mode is linear in its factor, so that its derivative by the factor is the product
    wanted. TensorFlow's forward mode has no loops of a graph, and under XLA is compiled for each call.
    """
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            output = function(x)
        factor = tf.zeros_like(output)
        outer.watch(factor)
        row = tf.convert_to_tensor(tape.gradient(output, x, factor, _ZERO))
    return output, outer.gradient(row, factor, vector, _ZERO)


def surrogate_pass(
    function: Map, inverse: Map, x: tf.Tensor, latent: Callable[[tf.Tensor], tf.Tensor], probes: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One pass of a map with a learned inverse, with a surrogate of its log-det.

    The gradient of `log |det J_f|` is `tr(J_f^-1 dJ_f)`. The Jacobian `J_g` of the learned inverse takes the
    place of `J_f^-1`. For probes v of mean 0 and covariance I, the trace is the mean of `(v^T dJ_f) (J_g v)`.
    The first factor is a product in reverse mode. The second one is constant.

    Args:
      function: the map f.
      inverse: the learned inverse map g.
      x: events.
      latent: a function of the output of f. It returns the events at which the learned inverse is computed;
        they must be equal to the output.
      probes: tensor of the shape of `x`. With several probes for an event, the event is repeated in `x`.

    Returns:
      The output of f; for each event a number with the gradient of the log-det; and the output of g.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        output = function(x)
    row = tape.gradient(output, x, probes, _ZERO)
    back, column = jacobian_product(inverse, latent(output), probes)
    return output, tf.reduce_sum(row * tf.stop_gradient(column), list(range(1, x.shape.rank))), back


def solve(
    function: Map, inverse: Map, z: tf.Tensor, *conditions: tf.Tensor, tolerance: float, max_steps: int = 30
) -> tuple[tf.Tensor, tf.Tensor]:
    """The events x with `function(x) = z`, by Broyden's method from the learned inverse.

    The initial events are `inverse(z)`, and the Jacobian of the learned inverse is the initial inverse
    Jacobian. Each step costs a pass of each map, and products with the earlier steps. The residual of
    Broyden's method may grow for a while, so that the best events are kept. A step of Newton's method ends
    the search, with the exact Jacobian, O(D^3). It also gives the exact gradient, of z and of the variables
    of `function`; it is differentiable once.

    Args:
      function: the map.
      inverse: the learned inverse map.
      z: events, `[B, *event]`.
      *conditions: the conditions of both maps.
      tolerance: the size of a residual at which the search ends.
      max_steps: the largest number of steps.

    Returns:
      The events, and the root mean square of the residual of each. Where z is so large that rounding alone
      may give a hundred times the tolerance, the residual is relative to that.
    """
    size, shape, constant = _size(z), tf.shape(z), tf.stop_gradient(z)

    def flat(events):
        return tf.reshape(events, [-1, size])

    def residual(vectors, z=constant):
        return flat(function(tf.reshape(vectors, shape), *conditions) - z)

    rounding = 16.0 * np.finfo(z.dtype.as_numpy_dtype).eps * _root_mean_square(flat(constant))
    scale = tf.maximum(rounding / (100.0 * tolerance), 1.0)

    def size_of(residuals):
        return _root_mean_square(residuals) / scale

    def learned_map(events):
        return inverse(events, *conditions)

    def learned(vectors):
        return flat(jacobian_product(learned_map, constant, tf.reshape(vectors, shape))[1])

    x = flat(learned_map(constant))
    x = tf.stop_gradient(_broyden(residual, size_of, learned, x, max_steps, tolerance))
    # The value is a step of Newton's method. Its gradient is the one of the solution.
    matrix = tf.stop_gradient(jacobian(function, tf.reshape(x, shape), *conditions))
    # XLA has no determinant. A singular Jacobian is an error of `tf.linalg.inv`; its step is one of Picard's.
    diagonal = tf.linalg.diag_part(tf.linalg.qr(matrix).r)
    is_regular = tf.reduce_all(tf.math.is_finite(diagonal) & (diagonal != 0.0), axis=-1)
    matrix = tf.where(is_regular[:, tf.newaxis, tf.newaxis], matrix, tf.eye(size, dtype=z.dtype))
    x = x - _newton_step(tf.linalg.inv(matrix), residual(x, z))
    return tf.reshape(x, shape), tf.stop_gradient(size_of(residual(x)))


@tf.custom_gradient
def _newton_step(inverses, residuals):
    """The product of a constant inverse Jacobian with the residual, differentiable once."""

    def gradient(d_step):
        product = tf.linalg.matvec(inverses, d_step, transpose_a=True)
        return None, differentiated_once(product, residuals)

    return tf.linalg.matvec(inverses, residuals), gradient


def _broyden(residual, size_of, learned, x, max_steps, tolerance):
    """The vectors with the smallest residuals, in steps of Broyden's second method."""

    def product(vectors, of_learned, lefts, rights):
        """The product of the present inverse Jacobian with vectors."""
        return of_learned + tf.einsum("mbd,mb->bd", lefts, tf.einsum("mbd,bd->mb", rights, vectors))

    def step(k, x, r, of_learned, lefts, rights, best, smallest):
        change = -product(r, of_learned, lefts, rights)
        x = x + change
        new_r = residual(x)
        new_of_learned = learned(new_r)
        difference = new_r - r
        error = change - product(difference, new_of_learned - of_learned, lefts, rights)
        squares = tf.reduce_sum(tf.square(difference), axis=-1, keepdims=True)
        lefts = tf.tensor_scatter_nd_update(lefts, [[k]], [error])
        rights = tf.tensor_scatter_nd_update(rights, [[k]], [tf.math.divide_no_nan(difference, squares)])
        new_size = size_of(new_r)
        is_better = new_size < smallest
        best = tf.where(is_better[:, tf.newaxis], x, best)
        return k + 1, x, new_r, new_of_learned, lefts, rights, best, tf.where(is_better, new_size, smallest)

    r = residual(x)
    memory = tf.zeros(tf.concat([[max_steps], tf.shape(x)], axis=0), x.dtype)
    state = tf.while_loop(
        lambda *state: tf.reduce_any(state[-1] > tolerance),
        step,
        (0, x, r, learned(r), memory, memory, x, size_of(r)),
        maximum_iterations=max_steps,
    )
    return state[-2]


def _root_mean_square(vectors):
    return tf.sqrt(tf.reduce_mean(tf.square(vectors), axis=-1))


def _size(x):
    return int(np.prod(x.shape[1:]))


class NetworkMaps(Maps):
    """The operations of a layer of networks; a kernel is a function of events."""

    has_matrix_kernels = False

    def __init__(self, event_ndims: int) -> None:
        self.event_ndims = event_ndims

    def apply(self, kernel: Callable, x: tf.Tensor) -> tf.Tensor:
        """The map of each event."""
        return kernel(x)

    def inverse_error(self, kernel: Callable, other_kernel: Callable, probes: tf.Tensor) -> tf.Tensor:
        """An estimate of `||I - J_f J_g|| / ||I||` (Frobenius norm) at standard normal latents, a scalar."""
        vectors = tf.roll(probes, shift=1, axis=0)
        events, pushed = jacobian_product(other_kernel, probes, vectors)
        back = jacobian_product(kernel, events, pushed)[1]
        return tf.norm(vectors - back) / tf.norm(vectors)


class ConditionedMap:
    """A function of events with given conditions, which are repeated if there are more events."""

    def __init__(self, function: Callable, conditions: Sequence[tf.Tensor]) -> None:
        self.function, self.conditions = function, conditions

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        numbers = tf.range(tf.shape(x)[0])
        conditions = [tf.gather(c, numbers % tf.shape(c)[0]) for c in self.conditions]
        return self.function(x, *conditions)
