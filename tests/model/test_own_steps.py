"""Subclasses with a loss or steps of their own, which get the data as Keras gives them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_fit_data import Batches, X, data_set, gaussian, generator

import tfp_selfnorm as sn

# Events that differ by less than float32 keeps.
WIDE = X.astype(np.float64) + 1e9
FORMS = {
    "array": lambda: WIDE,
    "tensor": lambda: tf.constant(WIDE),
    "data set": lambda: data_set(WIDE),
    "generator": lambda: generator(WIDE),
    "PyDataset": lambda: Batches(WIDE),
}


def events_of(data):
    return keras.utils.unpack_x_y_sample_weight(data)[0]


class Means:
    """Steps that return the mean of the events that they get, as their figure."""

    def train_step(self, data):
        return {"mean": tf.reduce_mean(events_of(data))}

    def test_step(self, data):
        return {"mean": tf.reduce_mean(events_of(data))}

    def predict_step(self, data):
        return tf.identity(events_of(data))


class MixedIn(Means, sn.FlowModel):
    """Its steps come from another class."""


class Steps(sn.FlowModel):
    """Its own steps."""

    train_step, test_step, predict_step = Means.train_step, Means.test_step, Means.predict_step


class StepsOfTheFlow(Steps):
    """Its steps also take the flow's own."""

    def train_step(self, data):
        return super().train_step(data) | sn.FlowModel.train_step(self, data)

    def test_step(self, data):
        return super().test_step(data) | sn.FlowModel.test_step(self, data)


class CompiledSteps(Steps):
    train_step = tf.function(Means.train_step)


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*", "ignore:.*ran out of data.*")
@pytest.mark.parametrize("kind", [Steps, StepsOfTheFlow, CompiledSteps, MixedIn])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_own_steps_see_float64_events_as_fed(kind, form):
    model = kind(gaussian(tf.float64))
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=kind is not CompiledSteps)
    history = model.fit(form(), batch_size=12, shuffle=False, validation_data=form(), verbose=0).history
    is_array = hasattr(form(), "shape")
    last = WIDE if is_array else WIDE[10:]
    np.testing.assert_allclose([*history["mean"], *history["val_mean"]], last.mean(), rtol=1e-14)
    np.testing.assert_array_equal(model.predict(form(), batch_size=5, verbose=0), WIDE)
    if is_array:
        for method in (model.train_on_batch, model.test_on_batch):
            np.testing.assert_allclose(method(form(), return_dict=True)["mean"], WIDE.mean(), rtol=1e-14)
        np.testing.assert_array_equal(model.predict_on_batch(form()), WIDE)
