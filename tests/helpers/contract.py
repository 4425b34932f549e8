"""What every bijector must satisfy; each check takes a bijector and data and raises AssertionError.

Inputs go through `tf.identity`: with the same tensor TFP's cache would return the point it came from.
"""

import numpy as np
import tensorflow as tf


def check_inverse(bijector, x, y, tolerance):
    """The two directions undo one another."""
    np.testing.assert_allclose(bijector.inverse(fresh(bijector.forward(fresh(x)))), x, **tolerance)
    np.testing.assert_allclose(bijector.forward(fresh(bijector.inverse(fresh(y)))), y, **tolerance)


def check_log_dets(bijector, x, y, event_ndims, tolerance):
    """Each log-det is that of the Jacobian which automatic differentiation finds for the direction."""
    forward = bijector.forward_log_det_jacobian(fresh(x), event_ndims)
    inverse = bijector.inverse_log_det_jacobian(fresh(y), event_ndims)
    np.testing.assert_allclose(
        *np.broadcast_arrays(forward, log_det(bijector.forward, x, event_ndims)), **tolerance
    )
    np.testing.assert_allclose(
        *np.broadcast_arrays(inverse, log_det(bijector.inverse, y, event_ndims)), **tolerance
    )


def check_pairs(bijector, x, y, event_ndims, tolerance):
    """A pair that one direction made has one log-det, at whichever end one asks for it."""
    image, preimage = bijector.forward(x), bijector.inverse(y)
    for point, other in ((x, image), (preimage, y)):
        np.testing.assert_allclose(
            bijector.forward_log_det_jacobian(point, event_ndims),
            -bijector.inverse_log_det_jacobian(other, event_ndims),
            **tolerance,
        )


def check_gradients(bijector, x, y, event_ndims, unused=0):
    """All but `unused` variables, and both inputs, get a finite gradient from one direction or the other."""
    x, y = fresh(x), fresh(y)
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        outputs = all_outputs(bijector, x, y, event_ndims)
        total = tf.add_n([tf.reduce_sum(tf.sin(output)) for output in outputs])
    gradients = tape.gradient(total, [x, y, *bijector.trainable_variables])
    present = [gradient for gradient in gradients if gradient is not None]
    assert len(gradients) - len(present) == unused
    assert all(np.isfinite(gradient).all() for gradient in present)


def check_compiled(bijector, x, y, event_ndims, tolerance, jit_compile, with_log_dets=True):
    """A compiled function returns what eager execution does."""
    outputs = all_outputs if with_log_dets else both_directions
    function = tf.function(
        lambda x, y: outputs(bijector, fresh(x), fresh(y), event_ndims), jit_compile=jit_compile
    )
    eager = outputs(bijector, fresh(x), fresh(y), event_ndims)
    for compiled, expected in zip(function(x, y), eager, strict=True):
        np.testing.assert_allclose(compiled, expected, **tolerance)


def check_shapes(bijector, x, y, event_ndims, batch_shape):
    """Outputs have the shape of the inputs, and the log-dets broadcast with their batch."""
    pairs = ((x, bijector.forward(fresh(x)), y), (y, bijector.inverse(fresh(y)), x))
    for value, output, other in pairs:
        assert output.dtype == value.dtype
        batch = np.broadcast_shapes(value.shape[: value.shape.rank - event_ndims], batch_shape)
        assert tuple(output.shape) == (*batch, *other.shape[other.shape.rank - event_ndims :])
    latent_shape, data_shape = (value.shape[value.shape.rank - event_ndims :] for value in (x, y))
    assert bijector.forward_event_shape(latent_shape) == data_shape
    assert bijector.inverse_event_shape(data_shape) == latent_shape
    np.testing.assert_array_equal(bijector.forward_event_shape_tensor(latent_shape), data_shape)
    np.testing.assert_array_equal(bijector.inverse_event_shape_tensor(data_shape), latent_shape)
    log_dets = (
        bijector.forward_log_det_jacobian(fresh(x), event_ndims),
        bijector.inverse_log_det_jacobian(fresh(y), event_ndims),
    )
    for log_det_value, value in zip(log_dets, (x, y), strict=True):
        assert log_det_value.dtype == value.dtype
        batch = np.broadcast_shapes(value.shape[: value.shape.rank - event_ndims], batch_shape)
        assert np.broadcast_shapes(log_det_value.shape, batch) == batch


def check_copy(bijector):
    """A copy shares the variables."""
    copy = bijector.copy(name="copy")
    assert copy.name == "copy"
    assert [id(v) for v in copy.variables] == [id(v) for v in bijector.variables]


def fresh(x):
    return tf.identity(x)


def both_directions(bijector, x, y, event_ndims):
    return bijector.forward(x), bijector.inverse(y)


def all_outputs(bijector, x, y, event_ndims):
    return (
        *both_directions(bijector, x, y, event_ndims),
        bijector.forward_log_det_jacobian(fresh(x), event_ndims),
        bijector.inverse_log_det_jacobian(fresh(y), event_ndims),
    )


def log_det(function, x, event_ndims):
    """`log |det|` of the Jacobian of each event, by automatic differentiation and numpy."""
    batch, event = x.shape[: x.shape.rank - event_ndims], x.shape[x.shape.rank - event_ndims :]
    results = [np.linalg.slogdet(jacobian(function, one))[1] for one in tf.reshape(x, [-1, *event])]
    return np.reshape(results, [*batch, *np.shape(results)[1:]])


def jacobian(function, event):
    """The matrices of the derivatives, for all parameters in a batch of them."""
    size, rank = tf.size(event).numpy(), event.shape.rank
    batch = function(event).shape[:-rank]
    # One copy of the event for each row: one gradient gives all rows.
    copies = tf.broadcast_to(event, [size, *batch, *event.shape])
    with tf.GradientTape() as tape:
        tape.watch(copies)
        image = function(copies)
    unit = tf.reshape(tf.eye(size, dtype=event.dtype), [size, *[1] * len(batch), *image.shape[-rank:]])
    rows = tape.gradient(image, copies, output_gradients=tf.broadcast_to(unit, image.shape))
    return np.moveaxis(np.reshape(rows, [size, *batch, size]), 0, -2)
