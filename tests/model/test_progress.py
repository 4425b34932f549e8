"""The progress bar shows the likelihood, and the figures that are out of the ordinary."""

import re

import keras
import numpy as np
import pytest
import tensorflow_probability as tfp
from versions import keras_3_12

import tfp_selfnorm as sn

tfd = tfp.distributions


def shown(model, capsys, events, **options):
    """The names of the figures in the last line of a training."""
    keras.utils.set_random_seed(1)
    capsys.readouterr()
    options = {"epochs": 1, "batch_size": 50, "verbose": 1} | options
    history = model.fit(events, **options).history
    line = re.split(r"[\r\n]+", capsys.readouterr().out.strip())[-1]
    return re.findall(r"- (\w+): ", line), history


def make_model(inverse_learning=None, rate=1e-3):
    flow = sn.dense_flow(2, num_layers=1, seed=1)
    model = sn.FlowModel(flow) if inverse_learning is None else sn.FlowModel(flow, inverse_learning)
    model.compile(keras.optimizers.SGD(rate))
    return model


@pytest.fixture
def events(rng):
    return rng.normal(size=[200, 2]).astype(np.float32)


def test_all_is_well(capsys, events):
    names, history = shown(make_model(), capsys, events, validation_data=(events,))
    assert names == ["nll", "val_nll"]
    assert {"loss", "skipped_updates", "inverse_error", "val_loss"} <= set(history)
    assert float(np.max(history["inverse_error"])) < 0.1


def test_with_verbose_2_all_figures_have_a_line(capsys, events):
    names, history = shown(make_model(), capsys, events, verbose=2)
    assert set(names) == set(history)


def test_a_regularizer_in_the_loss_is_shown(capsys, events):
    names, _ = shown(make_model(sn.Reconstruction(weight=2.0), rate=0.01), capsys, 5.0 * events)
    assert sorted(names) == ["loss", "nll", "reconstruction"]


def test_an_error_of_the_inverse_is_shown_when_it_is_large(capsys, events):
    model = make_model(sn.Tracking(num_probes=1, refresh_every=10**9), rate=0.3)
    names, history = shown(model, capsys, 5.0 * events)
    assert history["inverse_error"][0] > 0.1
    assert sorted(names) == ["inverse_error", "nll"]


def test_skipped_updates_are_shown(capsys, events):
    model = make_model(rate=1e30)
    model.compile(keras.optimizers.SGD(1e-3), max_skipped_updates=10**6)
    names, history = shown(model, capsys, 1e25 * events)
    assert history["skipped_updates"][0] == 4
    assert "skipped_updates" in names


def test_evaluation_and_a_progress_bar_of_the_user(capsys, events):
    model = make_model()
    model.evaluate(events, verbose=1)
    assert re.findall(r"- (\w+): ", capsys.readouterr().out.strip().split("\r")[-1]) == ["nll"]
    names, history = shown(model, capsys, events, callbacks=[keras.callbacks.ProgbarLogger()])
    assert set(names) == set(history)


class AddsVector(keras.callbacks.Callback):
    """Adds a figure that is no number to the logs, which Keras's own progress bar shows as its mean."""

    def on_epoch_end(self, epoch, logs=None):
        logs["mine"] = [1.0, 2.0]


@keras_3_12
def test_figures_of_a_callback_may_be_vectors(capsys, events):
    assert shown(make_model(), capsys, events, callbacks=[AddsVector()])[0] == ["nll", "mine"]


def test_training_on_a_target_shows_no_skipped_updates_of_zero(capsys):
    target = tfd.Sample(tfd.Normal(0.0, 1.0), 2)
    make_model().fit_to_target(target.log_prob, epochs=1, steps_per_epoch=2, verbose=1)
    assert "ess: " in (text := capsys.readouterr().out)
    assert "skipped_updates" not in text


def test_silence(capsys, events):
    names, _ = shown(make_model(), capsys, events, verbose=0)
    assert names == []


def test_the_text_of_a_model():
    text = repr(make_model())
    assert (
        text == "<FlowModel 'flow_model' of 'dense_flow': events (2,), 6 trainable parameters>"
        or re.fullmatch(
            r"<FlowModel 'flow_model_\d+' of 'dense_flow': events \(2,\), 6 trainable parameters>", text
        )
    )
    flow = sn.dense_flow(2, preprocessing=sn.images.pixel_sigmoid())
    assert str(flow).startswith('tfp.distributions.PreprocessedFlow("dense_flow"')
