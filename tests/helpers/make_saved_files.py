"""Saves a small trained model of each builder under `tests/data`, for later versions to load.

    python tests/helpers/make_saved_files.py NAME...    # the files named; they are kept, and not made anew

The files are those of version 0.1.0. A file that is made anew no longer guards the earlier format.
"""

import argparse
import json
import pathlib

import keras
import life_models
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions

FOLDER = pathlib.Path(__file__).parents[1] / "data"


@keras.saving.register_keras_serializable("tests")
def hidden_networks(seed=1):
    """Couplings whose networks only functions know."""

    def dense(units, activation, seed):
        initializer = keras.initializers.GlorotUniform(seed)
        return keras.layers.Dense(units, activation, kernel_initializer=initializer)

    def coupling(seed):
        held = keras.Sequential([keras.Input([2]), dense(3, "tanh", seed), dense(4, None, seed + 1)])
        return sn.AffineCoupling(lambda x: held(x), event_ndims=1, name=f"coupling_{seed}")

    chain = tfb.Chain([coupling(seed), tfb.Permute([2, 3, 0, 1]), coupling(seed + 10)])
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [4]), chain)


# The builders of version 0.1.0.
_FIRST = ("dense_flow", "conv_flow", "glow_flow", "glow_flow, lu")
BUILDERS = {name.replace(", ", "_"): name for name in _FIRST}


def make_model(name, seed=1):
    """The compiled model of a name."""
    if name in BUILDERS:
        # In version 0.1.0 no flow had a `Centering`.
        flow = {} if name == "dense_flow" else {"centering": False}
        return life_models.make_model(BUILDERS[name], seed, flow)
    model = sn.FlowModel.from_builder(hidden_networks, seed=seed)
    model.compile(keras.optimizers.Adam(1e-2))
    return model


def events(model):
    shape = [10, *model.distribution.event_shape]
    return np.random.default_rng(0).uniform(0.1, 3.9, shape).astype(np.float32)


NAMES = (*BUILDERS, "hidden_networks")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=NAMES)
    for name in parser.parse_args().names:
        model = make_model(name)
        model.fit(events(model), batch_size=10, verbose=0)
        FOLDER.mkdir(exist_ok=True)
        model.save(FOLDER / f"{name}.keras")
        model.save_weights(FOLDER / f"{name}.weights.h5")
        log_prob = model.log_prob(tf.constant(events(model))).numpy()
        # A float32 is a float64 to the bit.
        (FOLDER / f"{name}.json").write_text(json.dumps(log_prob.astype(float).tolist()) + "\n")


if __name__ == "__main__":
    main()
