"""Scopes belong to threads, and in them to tasks of asyncio: values outside are exact meanwhile."""

import asyncio
import concurrent.futures
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors


def test_scopes_of_threads_do_not_meet(make_layer, make_flow, rng):
    layers = [make_layer(3) for _ in range(4)]
    flows = [make_flow(layer, 3) for layer in layers]
    x = rng.normal(size=[5, 3])
    exact = [flow.log_prob(tf.constant(x)).numpy() for flow in flows]
    problems = []

    def work(i):
        try:
            for _ in range(10):
                with sn.training_scope() as scope:
                    surrogate = flows[i].log_prob(tf.constant(x)) + layers[i].exact_log_det()
                    assert [layer.identity for layer in scope.layers] == [layers[i].identity]
                    assert len(scope.passes) == 1
                np.testing.assert_allclose(surrogate, exact[i], rtol=1e-10)
                np.testing.assert_allclose(flows[i].log_prob(tf.constant(x)), exact[i], rtol=1e-10)
        except Exception as problem:  # noqa: BLE001 - reported by the main thread
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def in_another_thread(function):
    """The result of a call in a thread of its own; an error there is raised here."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


def single(layers):
    return standard_normal(layers[0])


def chain(layers):
    return standard_normal(tfb.Chain(layers))


def mixture(layers):
    flows = [standard_normal(layer) for layer in layers]
    return tfd.Mixture(tfd.Categorical(probs=np.array([0.3, 0.7])), flows)


def standard_normal(bijector):
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(3, tf.float64)), bijector)


def numpy_log_probs(make, layers, x):
    """The exact log density, and the surrogate that holds 0 for each log-det."""
    values = []
    for factor in (1.0, 0.0):
        z, total, terms = x, 0.0, []
        for layer in layers:
            w, bias = layer.inverse_kernel.numpy(), layer.bias.numpy()
            z = (x if make is mixture else z) @ w.T + bias
            total += factor * np.linalg.slogdet(w)[1]
            normal = -0.5 * np.sum(z**2, axis=1) - 1.5 * np.log(2 * np.pi)
            terms.append(normal + (factor * np.linalg.slogdet(w)[1] if make is mixture else total))
        by_make = {single: terms[0], chain: terms[1]}
        values.append(by_make[make] if make in by_make else np.log(np.exp(terms).T @ [0.3, 0.7]))
    return values


@pytest.mark.parametrize("is_exact_first", [False, True])
@pytest.mark.parametrize("make", [single, chain, mixture])
def test_the_same_tensor_in_a_scope_and_in_another_thread(make, is_exact_first, make_layer, rng):
    """Whichever comes first, each of the two gets its own value, and keeps it."""
    layers = [make_layer(3), make_layer(3)]
    flow, x = make(layers), rng.normal(size=[5, 3])
    exact, surrogate = numpy_log_probs(make, layers, x)
    assert np.abs(exact - surrogate).min() > 0.01
    same = tf.constant(x)

    def log_prob():
        return flow.log_prob(same)

    # TFP's cache lives as long as the tensors, so none of them may go.
    kept = [in_another_thread(log_prob)] if is_exact_first else []
    with sn.training_scope(None):
        kept.append(log_prob())
        np.testing.assert_allclose(kept[-1], surrogate, rtol=1e-12)
        np.testing.assert_allclose(in_another_thread(log_prob), exact, rtol=1e-12)
        np.testing.assert_allclose(log_prob(), surrogate, rtol=1e-12)
    np.testing.assert_allclose(log_prob(), exact, rtol=1e-12)


@pytest.mark.parametrize("direction", ["inverse", "forward"])
@pytest.mark.parametrize(
    "wrap", [lambda layer: layer, lambda layer: tfb.Chain([layer])], ids=["layer", "chain"]
)
def test_log_dets_of_one_tensor_in_a_scope_and_in_another_thread(wrap, direction, make_layer, rng):
    layer = make_layer(3)
    bijector, x = wrap(layer), tf.constant(rng.normal(size=[5, 3]))
    kernel = layer.inverse_kernel if direction == "inverse" else layer.forward_kernel
    exact = np.linalg.slogdet(kernel)[1]

    def value():
        function = getattr(bijector, f"{direction}_log_det_jacobian")
        return getattr(bijector, direction)(x), function(x, event_ndims=1)

    first = in_another_thread(value)
    with sn.training_scope(None):
        inside = value()
        other = in_another_thread(value)
        again = value()
    for found, expected in ((first, exact), (inside, 0.0), (other, exact), (again, 0.0), (value(), exact)):
        np.testing.assert_allclose(found[1], expected, rtol=1e-12, atol=1e-12)


def test_a_scope_belongs_to_a_task_of_asyncio():
    """Also where a task was made within it, or has a scope of its own at the same time."""
    flow = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(2)),
        sn.SelfNormDense(tf.eye(2), tf.constant([[2.0, 0.0], [0.0, 3.0]])),
    )
    x = tf.ones([1, 2])
    base = -0.5 * (4.0 + 9.0) - np.log(2 * np.pi)

    async def outside():
        await asyncio.sleep(0.01)
        return float(flow.log_prob(x)[0])

    async def inside():
        with sn.training_scope():
            made_within = asyncio.create_task(outside())
            await asyncio.sleep(0.02)
            surrogate = float(flow.log_prob(x)[0])
        return surrogate, await made_within

    async def both():
        return await asyncio.gather(inside(), outside(), inside())

    exact = base + np.log(6.0)
    np.testing.assert_allclose(np.hstack(asyncio.run(both())), [base, exact, exact, base, exact], rtol=1e-6)
