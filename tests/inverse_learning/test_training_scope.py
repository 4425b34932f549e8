"""The training scope: held values, true gradients, registration, threads, and its refusals."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from graphs import captured_by

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors


def test_the_surrogate_leaves_out_the_log_det_and_holds_what_it_is_given(make_layer, make_flow, rng):
    layer = make_layer(4)
    flow = make_flow(layer, 4)
    x = tf.constant(rng.normal(size=[5, 4]))
    exact = flow.log_prob(tf.identity(x))
    log_det = layer.exact_log_det()
    with sn.training_scope() as scope:
        np.testing.assert_allclose(flow.log_prob(tf.identity(x)), exact - log_det, rtol=1e-12)
        np.testing.assert_allclose(scope.exact_log_dets(), [log_det], rtol=1e-12)
    with sn.training_scope(log_dets={layer: log_det}):
        np.testing.assert_allclose(flow.log_prob(tf.identity(x)), exact, rtol=1e-12)
        np.testing.assert_allclose(layer.forward_log_det_jacobian(tf.identity(x)), -log_det, rtol=1e-12)


def test_the_same_tensor_is_exact_outside_and_a_surrogate_inside(make_layer, make_flow, rng):
    """TFP's cache must carry nothing across the border of a scope, in either direction."""
    layer = make_layer(4)
    flow = make_flow(tfb.Chain([layer]), 4)
    x = tf.constant(rng.normal(size=[5, 4]))
    kept = [flow.bijector.inverse(x)]
    before = flow.log_prob(x)
    with sn.training_scope() as scope:
        inside = flow.log_prob(x)
        kept.append(flow.bijector.inverse(x))
        assert scope.layers == [layer]
    np.testing.assert_allclose(before - inside, layer.exact_log_det(), rtol=1e-9)
    np.testing.assert_allclose(flow.log_prob(x), before, rtol=1e-12)


@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "xla"])
@pytest.mark.parametrize("kind", ["data", "symmetric", "inverse_only"])
def test_gradients_agree_in_eager_graph_and_xla(rng, kind, jit_compile):
    flow = sn.dense_flow(4, dtype=tf.float64, seed=1)
    for variable in flow.trainable_variables:
        variable.assign_add(0.2 * rng.normal(size=variable.shape))
    x = tf.constant(rng.normal(size=[5, 4]))

    def gradients(x):
        with tf.GradientTape() as tape, sn.training_scope(sn.Reconstruction(kind)) as scope:
            loss = -tf.reduce_mean(flow.log_prob(tf.identity(x))) + scope.reconstruction_loss()
        return tape.gradient(loss, flow.trainable_variables)

    found = gradients(x) if jit_compile is None else tf.function(gradients, jit_compile=jit_compile)(x)
    # The same by hand: without a regularizer in the scope, with plain products for the error.
    with tf.GradientTape() as tape, sn.training_scope(None):
        loss = -tf.reduce_mean(flow.log_prob(tf.identity(x)))
        y = x
        for i, layer in enumerate(sn.self_norm_layers(flow)):
            y = tf.stop_gradient(y)
            kernel, other = (tf.convert_to_tensor(k) for k in (layer.inverse_kernel, layer.forward_kernel))
            cut = tf.stop_gradient(kernel) if kind == "inverse_only" else kernel
            error = tf.reduce_mean(tf.reduce_sum((y - y @ tf.transpose(other @ cut)) ** 2, axis=-1))
            z = tf.stop_gradient(y @ tf.transpose(kernel))
            if kind == "symmetric":
                back = tf.reduce_mean(tf.reduce_sum((z - z @ tf.transpose(kernel @ other)) ** 2, axis=-1))
                error = 0.5 * error + 0.5 * back
            loss += error
            y = layer.inverse(y)
            if i == 0:
                y = sn.SmoothLeakyReLU(tf.constant(0.3, tf.float64)).forward(y)
    for one, other in zip(found, tape.gradient(loss, flow.trainable_variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_held_values_keep_a_mixture_right(rng):
    components = [sn.dense_flow(3, dtype=tf.float64, seed=seed) for seed in (1, 2)]
    for flow in components:
        for variable in flow.trainable_variables:
            variable.assign_add(0.3 * rng.normal(size=variable.shape))
    logits = tf.Variable([0.3, 0.1], dtype=tf.float64)
    mixture = tfd.Mixture(tfd.Categorical(logits=logits), components)
    x = tf.constant(rng.normal(size=[6, 3]))
    layers = sn.self_norm_layers(mixture)
    assert len(layers) == 4
    exact = mixture.log_prob(tf.identity(x))
    # Each component gets its own gradient of the scope, by its exact share in the density.
    joint = np.stack([flow.log_prob(tf.identity(x)) for flow in components], axis=-1)
    joint += np.log(tf.nn.softmax(logits))
    share = np.exp(joint - exact.numpy()[:, np.newaxis])
    variables = [variable for flow in components for variable in flow.trainable_variables]
    with tf.GradientTape() as tape, sn.training_scope(None):
        weighted = [share[:, i] * flow.log_prob(tf.identity(x)) for i, flow in enumerate(components)]
    expected = [share.sum(axis=0) - 6 * tf.nn.softmax(logits), *tape.gradient(weighted, variables)]
    held = {layer: layer.exact_log_det() for layer in layers}
    with tf.GradientTape() as tape, sn.training_scope(None, held):
        surrogate = mixture.log_prob(tf.identity(x))
    np.testing.assert_allclose(surrogate, exact, rtol=1e-10)
    for one, other in zip(tape.gradient(surrogate, [logits, *variables]), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_layer_that_the_held_values_lack_has_its_exact_one(make_layer, make_flow, rng):
    layers = [make_layer(3), make_layer(3)]
    flow, x = make_flow(tfb.Chain(layers), 3), tf.constant(rng.normal(size=[5, 3]))
    log_dets = [np.linalg.slogdet(layer.inverse_kernel)[1] for layer in layers]
    exact, results = flow.log_prob(tf.identity(x)), []
    for held in ({layers[0]: log_dets[0] + 2.0}, dict(zip(layers, log_dets, strict=True))):
        with tf.GradientTape() as tape, sn.training_scope(None, held):
            log_prob = flow.log_prob(tf.identity(x))
        results.append((log_prob, tape.gradient(log_prob, [layer.inverse_kernel for layer in layers])))
    np.testing.assert_allclose(results[0][0], exact + 2.0, rtol=1e-12)
    np.testing.assert_allclose(results[1][0], exact, rtol=1e-12)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-12)


@pytest.mark.parametrize("method", ["inverse", "forward"])
def test_every_gradient_waits_for_the_reads_of_both_kernels(make_layer, method):
    """An optimizer that assigns one kernel early would spoil the gradient of the other."""
    layer, gradients = make_layer(3), []
    kernels = [layer.inverse_kernel, layer.forward_kernel]

    @tf.function
    def compute(x):
        with tf.GradientTape() as tape, sn.training_scope(None):
            total = tf.reduce_sum(getattr(layer, method)(x))
        gradients.extend(tape.gradient(total, kernels))

    graph = compute.get_concrete_function(tf.TensorSpec([None, 3], tf.float64)).graph
    assert len(gradients) == 2
    for gradient in gradients:
        assert {id(kernel.handle) for kernel in kernels} <= captured_by(graph, gradient)


def test_registers_through_nested_objects(make_layer):
    layers = [make_layer(2), make_layer(2), make_layer(4)]
    joint = tfb.JointMap([layers[0], tfb.Invert(tfb.Invert(layers[1]))])
    split = tfb.Split(2)
    chain = tfb.Chain([layers[2], tfb.Invert(split), joint, split])
    with sn.training_scope() as scope:
        chain.inverse(tf.ones([3, 4], tf.float64))
        assert {layer.identity for layer in scope.layers} == {layer.identity for layer in layers}
        assert scope.reconstruction_loss() > 0.0


def test_tracking_scope_gives_w_the_plain_gradient(make_layer, make_flow, rng):
    layer = make_layer(4)
    x = tf.constant(rng.normal(size=[5, 4]))

    def gradients(layer, learning):
        flow = make_flow(layer, 4)
        with tf.GradientTape() as tape, sn.training_scope(learning):
            loss = -tf.reduce_mean(flow.log_prob(tf.identity(x)))
        return tape.gradient(loss, [layer.inverse_kernel, layer.forward_kernel])

    tracked = gradients(layer, sn.Tracking())
    assert tracked[1] is None
    np.testing.assert_allclose(tracked[0], gradients(layer.copy(mixture=1.0), None)[0], rtol=1e-12)


def test_a_plain_tape_loop_trains(rng):
    keras_optimizer = tf.keras.optimizers.Adam(4e-2)
    flow = sn.dense_flow(2, seed=1)
    mixing = np.array([[1.0, 0.9], [0.0, 0.3]])
    data = (rng.normal(size=[512, 2]) @ mixing.T).astype(np.float32)
    tracking = sn.Tracking(num_probes=2, refresh_every=10)
    layers = sn.self_norm_layers(flow)
    kernels = {layer.forward_kernel.ref() for layer in layers}
    variables = [v for v in flow.trainable_variables if v.ref() not in kernels]
    start = -tf.reduce_mean(flow.log_prob(tf.identity(data)))
    for step in range(50):
        with tf.GradientTape() as tape, sn.training_scope(tracking):
            loss = -tf.reduce_mean(flow.log_prob(tf.identity(data)))
        keras_optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        errors = tracking.follow(layers, step)
    assert -tf.reduce_mean(flow.log_prob(tf.identity(data))) < start - 0.5
    assert errors.shape == [len(layers)]
    assert max(errors) < 0.1


def test_nested_scopes_are_refused():
    with sn.training_scope(), pytest.raises(RuntimeError, match="already open"), sn.training_scope():
        pass
    with sn.training_scope():
        pass  # the failed attempt left nothing behind


def test_a_function_traced_inside_a_scope_of_outside_is_refused(make_layer, make_flow):
    flow = make_flow(make_layer(3), 3)
    function = tf.function(flow.log_prob)
    x = tf.zeros([2, 3], tf.float64)
    with sn.training_scope(), pytest.raises(ValueError, match="Open the scope inside"):
        function(x)
    np.testing.assert_allclose(function(x), flow.log_prob(tf.identity(x)))


def test_control_flow_inside_a_scope(make_layer, make_flow):
    flow = make_flow(make_layer(3), 3)

    @tf.function
    def gradients(x, learning):
        with tf.GradientTape() as tape, sn.training_scope(learning) as scope:
            loss = -tf.reduce_mean(tf.map_fn(lambda row: flow.log_prob(tf.identity(row)), x))
            if learning is not None:
                loss += scope.reconstruction_loss()
        return tape.gradient(loss, flow.trainable_variables)

    x = tf.ones([4, 3], tf.float64)
    with tf.GradientTape() as tape, sn.training_scope(None):
        loss = -tf.reduce_mean(flow.log_prob(tf.identity(x)))
    expected = tape.gradient(loss, flow.trainable_variables)
    for one, other in zip(gradients(x, None), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    with pytest.raises(ValueError, match="error is not available; use `Tracking`"):
        gradients(x, sn.Reconstruction())


@pytest.mark.parametrize(
    "run",
    [
        lambda f: tf.cond(tf.reduce_sum(f()) < 0.0, f, lambda: tf.zeros([4], tf.float64)),
        lambda f: tf.cond(tf.constant([False])[0], lambda: tf.zeros([4], tf.float64), f),
        lambda f: tf.while_loop(lambda i, _: i < 2, lambda i, _: (i + 1, f()), (0, f()))[1],
        lambda f: tf.while_loop(
            lambda i, _: (i < 1) & (tf.reduce_sum(f()) < 0.0), lambda i, _: (i + 1, f()), (0, 0.0 * f())
        )[1],
    ],
    ids=["true branch", "false branch", "body", "condition"],
)
def test_layers_pass_in_branches_and_loops(make_layer, make_flow, run):
    layer = make_layer(3)
    flow, x = make_flow(layer, 3), tf.ones([4, 3], tf.float64)
    log_det = layer.exact_log_det()

    @tf.function
    def compute(x):
        with sn.training_scope(None, {layer: log_det + 1.0}):
            return run(lambda: flow.log_prob(tf.identity(x)))

    np.testing.assert_allclose(compute(x), flow.log_prob(tf.identity(x)) + 1.0, rtol=1e-12)


def test_losses_need_a_layer_and_a_reconstruction(make_layer):
    with sn.training_scope() as scope, pytest.raises(ValueError, match="No self-normalizing layer"):
        scope.reconstruction_loss()
    with sn.training_scope(None) as scope, pytest.raises(ValueError, match="Reconstruction.*got None"):
        scope.reconstruction_loss()
    with sn.training_scope(sn.Tracking()) as scope:
        make_layer(3).inverse(np.ones([5, 3]))
        assert scope.reconstruction_loss() == 0.0  # it is tracked
    with pytest.raises(TypeError, match="inverse_learning"), sn.training_scope("data"):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "datas"}, "kind"),
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"num_probes": 0}, "num_probes"),
    ],
)
def test_reconstruction_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sn.Reconstruction(**arguments)


def test_the_weight_may_be_a_variable_or_an_argument(make_layer):
    layer = make_layer(3)
    weight = tf.Variable(2.0)
    with sn.training_scope(sn.Reconstruction(weight=weight)) as scope:
        layer.inverse(tf.ones([2, 3], tf.float64))
        error = scope.reconstruction_error()
        np.testing.assert_allclose(scope.reconstruction_loss(), 2.0 * error)
        np.testing.assert_allclose(scope.reconstruction_loss(weight=0.5), 0.5 * error)
        np.testing.assert_allclose(scope.reconstruction_error(num_examples=1), error)


def test_each_replica_has_probes_of_its_own(monkeypatch):
    """Their mean would gain nothing from the replicas otherwise. The first has those of a single device."""
    seeds = []
    for replica in (None, 0, 1):
        context = None if replica is None else types.SimpleNamespace(replica_id_in_sync_group=replica)
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda context=context: context)
        with sn.training_scope(seed=3) as scope:
            seeds.append(np.array(scope.pass_seed()).tolist())
    assert seeds[0] == seeds[1] != seeds[2]
