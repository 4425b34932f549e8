"""The steps that the benchmarks time: functions of no arguments, by name.

A step is the loss of a flow, what its learned inverse needs, and the gradients of the variables and, as a
layer below would need it, the input; compiled, in float32, with held values of the log-dets. "Adam" in a name
says that it is a whole training step of `FlowModel`, or of a Keras model, of one layer, with the update.
Products and convolutions are written as one writes them first.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions

PAPER, TRACKED, EXACT = "self_norm, the paper's regularizer", "self_norm, tracked", "exact gradient"
EXACT_LOG_PROB = "exact gradient and log_prob"
BLOCKS, MATRIX = "exact gradient, block elimination", "exact gradient, dense matrix"
SIX, THREE = "six products", "three products"
SIX_CONVOLUTIONS = "six convolutions"
REFRESH = "one refresh"
DENSE, LU = "Keras Dense", "ScaleMatvecLU"
ADAM = ", Adam"
# Not within the time of a benchmark.
_NO_REFRESH = 10**9


def make_layer(size, gradient="self_norm"):
    """A dense layer near the identity, which its learned inverse is."""
    layer = sn.SelfNormDense.trainable(size, seed=0, gradient=gradient)
    layer.inverse_kernel.assign_add(0.1 / size**0.5 * batch(size, size))
    return layer


def make_convolution(shape, gradient="self_norm"):
    """A 3x3 convolution near the identity, with the flipped kernel for its learned inverse."""
    return sn.SelfNormConv2D.trainable(shape[:2], shape[2], seed=0, gradient=gradient)


def normal(event_shape):
    return tfd.Sample(tfd.Normal(0.0, 1.0), event_shape)


def batch(*shape):
    return tf.random.stateless_normal(shape, [0, 1])


def flow_step(layer, inverse_learning, x, jit_compile=False, held=True):
    """The step of a flow of that one layer; without held log-dets their values are exact."""
    flow = tfd.TransformedDistribution(normal(x.shape[1:]), layer)
    by_gradient = inverse_learning is not None and inverse_learning.trains_inverse(layer)
    is_tracked = inverse_learning is not None and inverse_learning.tracks(layer)
    variables = [layer.inverse_kernel, layer.bias]
    if by_gradient:
        variables.append(layer.forward_kernel)

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            if held:
                with sn.training_scope(inverse_learning) as scope:
                    loss = -tf.reduce_mean(flow.log_prob(tf.identity(x)))
                    if by_gradient:
                        loss += scope.reconstruction_loss()
            else:
                loss = -tf.reduce_mean(flow.log_prob(tf.identity(x)))
        gradients = tape.gradient(loss, [x, *variables])
        if is_tracked:
            sn.sketch_and_project(layer, inverse_learning.num_probes)
        return loss, gradients

    return lambda: step(x)


def products(size, x, count):
    """`z = W x`, `W^T z`, `z x^T`, and the three of the way back."""
    layer = make_layer(size)
    kernel, other = layer.inverse_kernel, layer.forward_kernel

    @tf.function
    def step(x):
        z = tf.matmul(x, kernel, transpose_b=True)
        d_x = tf.matmul(z, kernel)
        d_kernel = tf.matmul(z, x, transpose_a=True)
        if count == 3:
            return d_x, d_kernel
        back = tf.matmul(z, other, transpose_b=True)
        pulled = tf.matmul(back, other)
        return d_x, d_kernel, pulled, tf.matmul(pulled, z, transpose_a=True)

    return lambda: step(x)


def convolutions(x):
    """As `products`, for a convolution."""
    layer = make_convolution(x.shape[1:])
    kernel, other = layer.inverse_kernel, layer.forward_kernel

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tf.nn.conv2d(x, kernel, 1, "SAME")
        gradients = tape.gradient(z, [x, kernel], output_gradients=z)
        with tf.GradientTape() as tape:
            tape.watch(z)
            back = tf.nn.conv2d(z, other, 1, "SAME")
        return gradients, tape.gradient(back, [z, other], output_gradients=back)

    return lambda: step(x)


def dense_matrix_step(layer, x):
    """The step of a flow of a convolution, the log-det by the dense matrix of the map."""
    kernel, bias, shape = layer.inverse_kernel, layer.bias, layer.event_sizes
    size, base = int(np.prod(shape)), normal(shape)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
            columns = tf.nn.conv2d(tf.reshape(tf.eye(size), [size, *shape]), kernel, 1, "SAME")
            log_det = tf.linalg.slogdet(tf.reshape(columns, [size, size])).log_abs_determinant
            loss = -tf.reduce_mean(base.log_prob(z) + log_det)
        return loss, tape.gradient(loss, [x, kernel, bias])

    return lambda: step(x)


def compiled_step(model, x):
    """What Keras calls for each batch, on one batch again and again."""
    model.make_train_function()
    batches = iter(endless(model, x))
    return lambda: model.train_function(batches)


def endless(model, x):
    """A data set of one batch; a model that is no flow wants targets, and has no use for them."""
    data = x if isinstance(model, sn.FlowModel) else (x, tf.zeros([x.shape[0], 1]))
    return tf.data.Dataset.from_tensors(data).repeat()


def flow_model(flow, inverse_learning, jit_compile="auto"):
    """Compiled with Adam; refreshes, which are timed apart, never come."""
    if hasattr(inverse_learning, "refresh_every"):
        inverse_learning = dataclasses.replace(inverse_learning, refresh_every=_NO_REFRESH)
    model = sn.FlowModel(flow, inverse_learning)
    model.compile(keras.optimizers.Adam(1e-5), jit_compile=jit_compile)
    return model


def keras_dense(size, num_layers=1):
    """Keras's own layers of the same size, with a loss that costs as little as that of a normal base."""
    hidden = [keras.layers.Dense(size, activation="leaky_relu") for _ in range(num_layers - 1)]
    model = keras.Sequential([keras.Input([size]), *hidden, keras.layers.Dense(size)])
    model.compile(keras.optimizers.Adam(1e-5), loss=lambda y, z: 0.5 * tf.reduce_sum(tf.square(z), axis=-1))
    return model


def _one_layer(make, inverse_learning):
    def step(x, jit_compile="auto"):
        flow = tfd.TransformedDistribution(normal(x.shape[1:]), make(x))
        return compiled_step(flow_model(flow, inverse_learning, jit_compile), x)

    return step


def _lu(x):
    size = x.shape[1]
    factors, permutation = tf.linalg.lu(tf.convert_to_tensor(make_layer(size).inverse_kernel))
    return tfb.Invert(tfb.ScaleMatvecLU(tf.Variable(factors), permutation))


def _refresh(layer):
    """What the host does for a layer that is tracked, once in `refresh_interval` steps."""

    def refresh():
        sn.refresh_inverse(layer)
        return layer.exact_log_det()

    return refresh


def dense_steps(size):
    """For each method a function of a batch that makes its step."""
    exact = {"gradient": "exact"}
    return {
        SIX: lambda x: products(size, x, 6),
        THREE: lambda x: products(size, x, 3),
        PAPER: lambda x: flow_step(make_layer(size), sn.Reconstruction(), x),
        TRACKED: lambda x: flow_step(make_layer(size), sn.Tracking(), x),
        EXACT: lambda x: flow_step(make_layer(size, **exact), None, x),
        EXACT_LOG_PROB: lambda x: flow_step(make_layer(size, **exact), None, x, held=False),
        REFRESH: lambda x: _refresh(make_layer(size)),
        DENSE + ADAM: lambda x: compiled_step(keras_dense(size), x),
        PAPER + ADAM: _one_layer(lambda x: make_layer(size), sn.Reconstruction()),
        TRACKED + ADAM: _one_layer(lambda x: make_layer(size), sn.Tracking()),
        EXACT + ADAM: _one_layer(lambda x: make_layer(size, **exact), None),
        LU + ADAM: _one_layer(_lu, None),
    }


def with_refreshes(times, interval):
    """Adds to each tracked step its share of the refreshes, and leaves these out."""
    share = np.median(times.pop(REFRESH)) / interval
    return {name: values + share * name.startswith(TRACKED) for name, values in times.items()}


def conv_steps(shape):
    """As `dense_steps`, for a 3x3 convolution of images of a shape."""
    return {
        SIX_CONVOLUTIONS: convolutions,
        PAPER: lambda x: flow_step(make_convolution(shape), sn.Reconstruction(), x),
        BLOCKS: lambda x: flow_step(make_convolution(shape, "exact"), None, x),
        MATRIX: lambda x: dense_matrix_step(make_convolution(shape), x),
        PAPER + ADAM: _one_layer(lambda x: make_convolution(shape), sn.Reconstruction()),
    }


def flows():
    """The whole models: the shape of an event, and a function that makes the flow and how it learns."""
    image = (28, 28, 1)
    glow = {
        "steps_per_block": 4,
        "width": 16,
        "kernel_size": 5,
        "act_norm": False,
        "centering": False,
        "split_prior": False,
    }
    paper, tracking = sn.Reconstruction(), sn.Tracking()
    learned = {"centering": False, "gradient": "self_norm", "seed": 1}
    squareplus = {"activation": "leaky_squareplus"}
    return {
        "FC-2, the paper's regularizer": ((784,), lambda: (sn.dense_flow(784, seed=1), paper)),
        "FC-2, tracked": ((784,), lambda: (sn.dense_flow(784, seed=1), tracking)),
        "FC-2, squareplus, tracked": ((784,), lambda: (sn.dense_flow(784, seed=1, **squareplus), tracking)),
        "FC-2, exact gradient": ((784,), lambda: (sn.dense_flow(784, seed=1, gradient="exact"), None)),
        "conv-9, smooth leaky ReLU": (
            image,
            lambda: (sn.conv_flow(image, **learned), paper),
        ),
        "conv-9, smooth leaky ReLU, exact gradient": (
            image,
            lambda: (sn.conv_flow(image, centering=False, seed=1, gradient="exact"), None),
        ),
        "conv-9, squareplus": (image, lambda: (sn.conv_flow(image, **learned, **squareplus), paper)),
        "conv-9, spline": (
            image,
            lambda: (
                sn.conv_flow(image, activation="spline", **learned),
                paper,
            ),
        ),
        "Glow, 2 blocks of 4, width 16, 5x5": (
            image,
            lambda: (sn.glow_flow(image, seed=1, **glow), sn.Reconstruction("data", 100.0)),
        ),
    }
