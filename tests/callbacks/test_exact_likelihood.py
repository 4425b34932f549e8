"""The likelihood of held-out events is exact, whenever it is asked for."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from watched_models import begin, compiled, dense_images, pixel_noise

import tfp_selfnorm as sn
from tfp_selfnorm.callbacks import ExactLikelihood

tfd, tfb = tfp.distributions, tfp.bijectors


def numpy_nll(x, kernel, bias):
    z = x @ kernel.T + bias
    log_prob = -0.5 * (z**2).sum(axis=1) - 0.5 * z.shape[1] * np.log(2 * np.pi)
    return -np.mean(log_prob + np.linalg.slogdet(kernel)[1])


def test_the_likelihood_is_exact_at_every_call(make_layer, make_flow, rng, capsys):
    layer = make_layer(5)
    model = compiled(make_flow(layer, 5))
    x = rng.normal(size=[20, 5])
    likelihood = begin(ExactLikelihood(x, batch_size=7, verbose=1), model)
    kernels = [*(rng.normal(size=[3, 5, 5])), np.zeros([5, 5]), np.full([5, 5], np.nan)]
    for step, kernel in enumerate(kernels):
        layer.inverse_kernel.assign(kernel)
        model.optimizer.iterations.assign(step)
        likelihood.on_train_end()
    steps, figures = zip(*likelihood.history, strict=True)
    assert steps == (0, 1, 2, 3, 4)
    expected = [numpy_nll(x, kernel, layer.bias.numpy()) for kernel in kernels[:3]]
    np.testing.assert_allclose(figures, [*expected, np.inf, np.nan], rtol=1e-12)
    assert f"Step 2: exact NLL {expected[2]:.6g} nats" in capsys.readouterr().out
    # The last weights may be others than the last step's, as with `restore_best_weights`.
    layer.inverse_kernel.assign(kernels[0])
    likelihood.on_train_end()
    assert likelihood.history == [*zip(steps, figures, strict=True)][:4] + [(4, figures[0])]


@pytest.mark.parametrize(
    "make",
    [
        lambda: sn.conv_flow((4, 4, 1), num_blocks=1, layers_per_block=1, centering=False, seed=1),
        lambda: pixel_noise((4, 4, 1)),
        lambda: tfd.Independent(tfd.Normal(tf.Variable(np.ones([3, 4, 4, 1], np.float32)), 1.0), 3),
    ],
    ids=["conv", "no layers", "batch of distributions"],
)
def test_the_likelihood_of_other_distributions(make, rng):
    distribution = make()
    shape = [1] * distribution.batch_shape.rank + [4, 4, 1]
    x = rng.uniform(0.1, 0.9, size=[5, *shape])
    model = compiled(distribution)
    likelihood = begin(ExactLikelihood(x, batch_size=2), model)
    logs = {}
    likelihood.on_epoch_end(0, logs)
    np.testing.assert_allclose(logs["exact_nll"], -np.mean(model.log_prob(x)), rtol=1e-5)
    assert likelihood.history == [(0, logs["exact_nll"])]


def test_log_dets_are_paid_for_once_an_evaluation(make_layer, make_flow, rng, monkeypatch):
    layers = [make_layer(4), make_layer(4)]
    model = compiled(make_flow(tfb.Chain(layers), 4))
    likelihood = begin(ExactLikelihood(rng.normal(size=[9, 4]), batch_size=2), model)
    likelihood.on_train_end()
    calls = []

    def shifted(layer):
        calls.append(layer)
        return layer.operations.log_det(tf.convert_to_tensor(layer.inverse_kernel)) + 10.0

    monkeypatch.setattr(sn.SelfNormDense, "exact_log_det", shifted)
    model.optimizer.iterations.assign(1)
    likelihood.on_train_end()
    assert len(calls) == 2
    (_, before), (_, after) = likelihood.history
    np.testing.assert_allclose(before - after, 20.0, rtol=1e-12)


def test_the_likelihood_starts_anew_with_another_model(make_layer, make_flow, rng):
    x = rng.normal(size=[6, 3])
    likelihood = ExactLikelihood(x)
    for step in (2, 1):
        layer = make_layer(3)
        layer.inverse_kernel.assign_add(0.3 * rng.normal(size=[3, 3]))
        model = compiled(make_flow(layer, 3))
        model.optimizer.iterations.assign(step)
        begin(likelihood, model).on_train_end()
        ((found_step, nll),) = likelihood.history
        assert found_step == step
        np.testing.assert_allclose(nll, numpy_nll(x, layer.inverse_kernel.numpy(), layer.bias.numpy()))


def test_events_that_have_no_likelihood(events):
    bad = events.copy()
    bad[3, 1, 1] = np.nan
    with pytest.raises(ValueError, match="`x` has values that are not finite in 1 of 40 .* index 3"):
        ExactLikelihood(bad)
    with pytest.raises(TypeError, match="`x` must be an array of a floating dtype; got dtype uint8.*dequant"):
        ExactLikelihood(events.astype(np.uint8))
    with pytest.raises(TypeError, match="`x` must be an array of a floating dtype; got dtype object"):
        ExactLikelihood(tf.data.Dataset.from_tensors(events))
    for empty in (events[:0], np.float32(1.0)):
        with pytest.raises(ValueError, match="`x` must be a batch of events, one or more; got shape"):
            ExactLikelihood(empty)
    model = compiled(dense_images())
    for other in (events[:, 0], events[0]):
        message = r"`x\[0\]` has shape \(4,\); expected a batch of events of shape \(4, 4\)"
        with pytest.raises(ValueError, match=message):
            begin(ExactLikelihood(other), model)
