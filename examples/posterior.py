"""A posterior by simulation: p(parameters | observation) from pairs of both.

python examples/posterior.py
"""

import keras
import numpy as np

import tfp_selfnorm as sn

rng = np.random.default_rng(1)


def simulate(parameters):
    """Ten draws from a normal density, whose mean and logarithm of the deviation are the parameters."""
    mean, log_deviation = parameters[:, :1], parameters[:, 1:]
    return mean + np.exp(log_deviation) * rng.normal(size=[len(parameters), 10])


def prior(number):
    return rng.normal(size=[number, 2]) * [1.0, 0.5]


parameters = prior(10_000)
observations = simulate(parameters)

# The embedding makes eight numbers of an observation, whatever the order of the draws.
draws = keras.Input([10])
each = keras.layers.Dense(32, "relu")(keras.layers.Reshape([10, 1])(draws))
summary = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(32, "relu")(each))
embedding = keras.Model(draws, keras.layers.Dense(8)(summary))

flow = sn.coupling_flow(event_shape=2, condition_shape=8, num_layers=4, width=32, seed=1)
model = sn.ConditionalFlowModel(flow, embedding=embedding)
model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, 20 * 100)))
model.fit(observations, parameters, epochs=20, batch_size=100)

truth = prior(500)
ranks = sn.plot.ranks(model.sample(99, simulate(truth), seed=1), truth)
print("Ranks of the truth among samples, 0 to 99; the mean of calibrated ones is 49.5:", ranks.mean(axis=0))
one = simulate(np.array([[1.0, 0.0]]))
samples = model.sample(5000, one, seed=2).numpy()[:, 0]
print("For mean 1 and deviation 1: means", samples.mean(axis=0), "deviations", samples.std(axis=0))
