"""Trains two flows on each of four toy densities in the plane, and draws what they have learned.

    python examples/experiments/toy_gallery.py                                   # five minutes of CPU
    python examples/experiments/toy_gallery.py --flows splines --toys rings --steps 200 --couplings 2

In `splines`, self-normalizing layers mix the two coordinates from data to latent, and between them TFP's
rational quadratic splines bend one of them, with bins that a Keras network chooses for the other. The layers
learn their inverses by tracking, the default. `free_form` is a `free_form_flow`: residual networks of both
coordinates, each with a learned inverse. In the plane its log-det has the exact gradient. The points for
training are fresh in every batch. `toy_gallery.png` and `toy_gallery.csv` go into the folder `--output`.

The likelihoods in the table are exact, of points that were not trained on. The entropy is the mean NLL of the
same points under the density that they are from: no flow can do better, but for chance. Nothing makes a
free-form flow invertible: the mass is the sum of its density over the picture, and 1 for a density.
"""

import argparse
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.figure import Figure
from raw_files import write_csv
from toy_data import TOYS, log_prob

import tfp_selfnorm as sn

tfb = tfp.bijectors
tfd = tfp.distributions

# The splines bend [-BOUND, BOUND], and leave what is outside.
BOUND = 5.0
MIN_BIN_FRACTION = MIN_SLOPE = 1e-3
VIEW = (-4.4, 4.4)
# Flows, and what the picture calls them.
FLOWS = {"splines": "spline couplings", "free_form": "free-form flow"}
_WHITENED = 5000


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


def make_spline_flow(num_couplings, num_bins, width, seed):
    """Self-normalizing layers with spline couplings between, standard normal base."""
    bijectors = []
    for i in range(num_couplings):
        bijectors.append(sn.SelfNormDense.trainable(2, seed=seed + i, name=f"dense_{i}"))
        bijectors.append(spline_coupling(num_bins, width, i % 2 == 0, seed + 10 * i))
    bijectors.append(sn.SelfNormDense.trainable(2, seed=seed + num_couplings, name="dense_last"))
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), tfb.Chain(bijectors))


def make_free_form_flow(arguments):
    """Pairs of residual networks, each the learned inverse of the other, after a dense layer."""
    return sn.free_form_flow(
        2,
        num_layers=arguments.pairs,
        width=arguments.free_form_width,
        depth=arguments.depth,
        seed=arguments.seed,
    )


class Trainer:
    """One model for all toys, whose training step is compiled once; each toy starts it afresh."""

    def __init__(self, kind, arguments):
        self._batch_size, self._seed, self._is_free = (
            arguments.batch_size,
            arguments.seed,
            kind == "free_form",
        )
        steps, rate = arguments.steps, arguments.learning_rate
        learning = None
        if self._is_free:
            steps, rate = arguments.free_form_steps, arguments.free_form_rate
            flow = make_free_form_flow(arguments)
            learning = sn.Tracking(reconstruction=sn.Reconstruction(weight=arguments.weight))
        else:
            flow = make_spline_flow(arguments.couplings, arguments.bins, arguments.width, arguments.seed)
        self.num_steps = steps
        self.model = sn.FlowModel(flow, learning or sn.Tracking())
        # A schedule is no variable of the optimizer: all of them start at 0.
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
        # A step is then three times as fast, but compiling takes as long as a thousand steps. XLA has no
        # log-det of matrices on the CPU.
        is_long = steps * len(arguments.toys) > 1000 and not self._is_free
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
        points = TOYS[toy](self.num_steps * self._batch_size, self._seed)
        if self._is_free:
            sn.whiten(self.model.distribution, points[:_WHITENED])
        self.model.fit(points, batch_size=self._batch_size, shuffle=False, verbose=0)


def make_panels(kinds, toys):
    """A figure with a column for each toy, and its axes by row: the data, then two rows for each flow."""
    labels = ["held-out data"]
    for kind in kinds:
        labels += [f"{FLOWS[kind]},\ndensity", f"{FLOWS[kind]},\nlearned samples"]
    size = 2.4 * len(toys) + 0.3, 2.4 * len(labels) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(labels), len(toys), squeeze=False)
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=10)
    return figure, axes


def results_of(trainer, toy, arguments, axes):
    """Trains a flow on a toy; draws its density and its samples, and returns its figures."""
    began, cpu_began = time.perf_counter(), time.process_time()
    trainer.fit(toy)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    model, held_out = trainer.model, TOYS[toy](arguments.points, arguments.seed + 1)
    sn.plot.density(model, VIEW, axes[0], arguments.cells)
    sn.plot.samples(model.sample(arguments.points, seed=arguments.seed), VIEW, axes[1], num_bins=100)
    density = axes[0].images[0].get_array()
    layers = sn.self_norm_layers(model.distribution)
    return {
        "steps": trainer.num_steps,
        "held_out_points": arguments.points,
        "test_nll": round(-float(np.mean(model.log_prob(held_out), dtype=np.float64)), 4),
        "entropy": round(-float(np.mean(log_prob(toy, held_out))), 4),
        "mass": round(float(np.sum(density)) * ((VIEW[1] - VIEW[0]) / arguments.cells) ** 2, 4),
        "inverse_error": float(f"{max(float(sn.inverse_error(layer, seed=0)) for layer in layers):.2g}"),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toys", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--couplings", type=int, default=4)
    parser.add_argument("--bins", type=int, default=16, help="of each spline")
    parser.add_argument("--width", type=int, default=64, help="of the couplings' networks")
    parser.add_argument("--steps", type=int, default=1200, help="of training the splines, for each toy")
    parser.add_argument("--pairs", type=int, default=3, help="of networks in the free-form flow")
    parser.add_argument("--free-form-width", type=int, default=128, help="of the free-form flow's networks")
    parser.add_argument("--depth", type=int, default=1, help="of the free-form flow's networks")
    parser.add_argument("--weight", type=float, default=10.0, help="of the reconstruction, free-form flow")
    parser.add_argument("--free-form-steps", type=int, default=3000, help="of training the free-form flow")
    parser.add_argument("--free-form-rate", type=float, default=5e-3, help="its learning rate")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of the splines")
    parser.add_argument("--points", type=int, default=20_000, help="held-out points and samples, each")
    parser.add_argument("--cells", type=int, default=150, help="of the density's grid, on a side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("toy_gallery_output"))
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    trainers = {kind: Trainer(kind, arguments) for kind in arguments.flows}
    for trainer in trainers.values():
        trainer.compile()
    print(
        f"the training steps are compiled after {time.perf_counter() - start:.0f} seconds, "
        f"{time.process_time():.0f} of CPU since the imports began\n",
        flush=True,
    )
    figure, axes = make_panels(arguments.flows, arguments.toys)
    rows = []
    for toy, column in zip(arguments.toys, axes.T, strict=True):
        held_out = TOYS[toy](arguments.points, arguments.seed + 1)
        sn.plot.samples(held_out, VIEW, column[0], num_bins=100)
        for i, (kind, trainer) in enumerate(trainers.items()):
            figures = results_of(trainer, toy, arguments, column[1 + 2 * i :])
            if not rows:
                print("".join(f"{name:>16}" for name in ("toy", "flow", *figures)))
            rows.append({"toy": toy, "flow": kind, **figures})
            print("".join(f"{value:>16}" for value in rows[-1].values()), flush=True)
        nlls = [f"{row['test_nll']:.2f}" for row in rows if row["toy"] == toy]
        column[0].set_title(f"{toy.replace('_', ' ')}, {' and '.join(nlls)} nats", fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    write_csv(arguments.output / "toy_gallery.csv", rows)
    figure.savefig(arguments.output / "toy_gallery.png", dpi=100)
    print(
        f"\n{time.perf_counter() - start:.0f} seconds in all, {time.process_time():.0f} of CPU; "
        f"picture in {arguments.output / 'toy_gallery.png'}"
    )


if __name__ == "__main__":
    main()
