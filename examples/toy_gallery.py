"""Trains a flow on each of four toy densities in the plane, and draws what they have learned.

    python examples/toy_gallery.py                                   # about a minute and a half on two cores
    python examples/toy_gallery.py --toys rings --steps 200 --couplings 2

From data to latent, self-normalizing layers mix the two coordinates, and between them TFP's rational
quadratic splines bend one of them, with bins that a Keras network chooses for the other. The layers learn
their inverses by tracking, the default, and the samples are drawn with them. The points for training are
fresh in every batch. `toy_gallery.png` and `toy_gallery.csv` go into the folder `--output`.

The likelihoods in the table are exact, of points that were not trained on. For the checkerboard no flow has
less than its entropy, log 32 = 3.466 nats.
"""

import argparse
import pathlib
import time

import keras
import matplotlib as mpl
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tables import write_csv
from toy_data import TOYS

import tfp_selfnorm as sn

tfb = tfp.bijectors
tfd = tfp.distributions

# The splines bend [-BOUND, BOUND], and leave what is outside.
BOUND = 5.0
MIN_BIN_FRACTION = MIN_SLOPE = 1e-3
VIEW = 4.4


def spline_coupling(num_bins, width, kept_first, seed):
    """A coupling, data to latent, that bends one coordinate by a spline that depends on the other."""
    initializers = keras.initializers
    network = keras.Sequential(
        [
            keras.Input([1]),
            # Spread over the coordinate, so that sharp edges are within reach from the start.
            keras.layers.Dense(
                width,
                "silu",
                kernel_initializer=initializers.RandomNormal(stddev=1.0, seed=seed),
                bias_initializer=initializers.RandomUniform(-2.0, 2.0, seed=seed + 1),
            ),
            keras.layers.Dense(width, "silu", kernel_initializer=initializers.GlorotUniform(seed + 2)),
            keras.layers.Dense(3 * num_bins - 1, kernel_initializer="zeros"),
        ]
    )

    def make_spline(kept, unused_size, **unused_condition):
        widths, heights, slopes = tf.split(
            network(kept)[..., tf.newaxis, :], [num_bins, num_bins, num_bins - 1], axis=-1
        )

        def bins(logits):
            shares = tf.nn.softmax(logits)
            return 2.0 * BOUND * (MIN_BIN_FRACTION + (1.0 - num_bins * MIN_BIN_FRACTION) * shares)

        # softplus(log(e - 1)) = 1: the spline starts as the identity.
        slopes = MIN_SLOPE + (1.0 - MIN_SLOPE) * tf.nn.softplus(slopes + np.log(np.e - 1.0))
        return tfb.RationalQuadraticSpline(bins(widths), bins(heights), slopes, range_min=-BOUND)

    return tfb.Invert(tfb.RealNVP(num_masked=1 if kept_first else -1, bijector_fn=make_spline))


def make_flow(num_couplings, num_bins, width, seed):
    """Self-normalizing layers with spline couplings between, standard normal base."""
    bijectors = []
    for i in range(num_couplings):
        bijectors.append(sn.SelfNormDense.trainable(2, seed=seed + i, name=f"dense_{i}"))
        bijectors.append(spline_coupling(num_bins, width, i % 2 == 0, seed + 10 * i))
    bijectors.append(sn.SelfNormDense.trainable(2, seed=seed + num_couplings, name="dense_last"))
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), tfb.Chain(bijectors))


class Trainer:
    """One model for all toys, whose training step is compiled once; each toy starts it afresh."""

    def __init__(self, arguments):
        self._batch_size, self._seed = arguments.batch_size, arguments.seed
        self._num_points = arguments.steps * arguments.batch_size
        self.model = sn.FlowModel(
            make_flow(arguments.couplings, arguments.bins, arguments.width, arguments.seed)
        )
        # A schedule is no variable of the optimizer: all of them start at 0.
        rate = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, arguments.steps)
        # A step is then three times as fast, but compiling takes as long as a thousand steps.
        is_long = arguments.steps * len(arguments.toys) > 1000
        self.model.compile(keras.optimizers.Adam(rate), jit_compile=is_long)
        self._initial = self.model.get_weights()

    def compile(self):
        """Traces and compiles the training step."""
        self.model.fit(np.zeros([self._batch_size, 2], np.float32), batch_size=self._batch_size, verbose=0)

    def fit(self, toy):
        """Trains the model, from its initial weights, on fresh points in each batch."""
        self.model.set_weights(self._initial)
        for variable in self.model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        points = TOYS[toy](self._num_points, self._seed)
        self.model.fit(points, batch_size=self._batch_size, shuffle=False, verbose=0)


def grid_of(num_cells):
    """The centres `[num_cells^2, 2]` of the cells of a grid over the picture."""
    centres = (np.arange(num_cells) + 0.5) * (2.0 * VIEW / num_cells) - VIEW
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2).astype(np.float32)


def histogram(points, num_cells):
    """How many points fall into each cell, a row of cells for each step of the second coordinate."""
    return np.histogram2d(points[:, 1], points[:, 0], num_cells, [[-VIEW, VIEW]] * 2)[0]


def draw(columns, path):
    """Writes a picture with a column for each toy: title and, by its label, each image."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    labels = list(columns[0][1])
    figure, axes = plt.subplots(
        len(labels),
        len(columns),
        figsize=(2.4 * len(columns) + 0.3, 2.4 * len(labels) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for column, (title, images) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=10)
        for axis, image in zip(axes[:, column], images.values(), strict=True):
            # A few bright cells would darken all others.
            brightest = np.percentile(image[image > 0.01 * image.max()], 99.0)
            axis.imshow(image, origin="lower", vmin=0.0, vmax=brightest, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--couplings", type=int, default=4)
    parser.add_argument("--bins", type=int, default=16, help="of each spline")
    parser.add_argument("--width", type=int, default=64, help="of the couplings' networks")
    parser.add_argument("--steps", type=int, default=1200, help="of training, for each toy")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--points", type=int, default=20_000, help="held-out points and samples, each")
    parser.add_argument("--cells", type=int, default=150, help="of the density's grid, on a side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("toy_gallery_output"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    trainer = Trainer(arguments)
    trainer.compile()
    print(
        f"the training step is compiled after {time.perf_counter() - start:.0f} seconds, "
        f"{time.process_time():.0f} of CPU since the imports began\n",
        flush=True,
    )
    print(f"{'toy':16}{'test NLL, nats':>15}{'inverse error':>15}{'seconds':>10}{'of CPU':>10}")
    columns, rows = [], []
    model = trainer.model
    for toy in arguments.toys:
        began, cpu_began = time.perf_counter(), time.process_time()
        trainer.fit(toy)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        held_out = TOYS[toy](arguments.points, arguments.seed + 1)
        nll = -float(np.mean(model.log_prob(held_out), dtype=np.float64))
        error = max(
            float(sn.inverse_error(layer, seed=0)) for layer in sn.self_norm_layers(model.distribution)
        )
        figures = (round(nll, 4), float(f"{error:.2g}"), round(seconds, 1), round(cpu_seconds, 1))
        rows.append((toy, arguments.steps, arguments.points, *figures))
        print(f"{toy:16}{nll:15.3f}{error:15.1e}{seconds:10.1f}{cpu_seconds:10.1f}", flush=True)
        density = np.exp(model.log_prob(grid_of(arguments.cells))).reshape([arguments.cells] * 2)
        samples = model.sample(arguments.points, seed=arguments.seed).numpy()
        images = {
            "held-out data": histogram(held_out, 100),
            "density of the flow": density,
            "samples, learned inverse": histogram(samples, 100),
        }
        columns.append((f"{toy.replace('_', ' ')}, {nll:.2f} nats", images))

    header = ("toy", "steps", "held_out_points", "test_nll", "inverse_error", "seconds", "cpu_seconds")
    write_csv(arguments.output / "toy_gallery.csv", [dict(zip(header, row, strict=True)) for row in rows])
    draw(columns, arguments.output / "toy_gallery.png")
    print(
        f"\n{time.perf_counter() - start:.0f} seconds in all, {time.process_time():.0f} of CPU; "
        f"picture in {arguments.output / 'toy_gallery.png'}"
    )


if __name__ == "__main__":
    main()
