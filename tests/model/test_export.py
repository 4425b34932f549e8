"""The SavedModel, in processes that have neither this package nor TFP."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

SCORE = """
import sys
for name in ("tfp_selfnorm", "tensorflow_probability", "tf_keras"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
import tensorflow as tf
try:
    import tfp_selfnorm
except ImportError:
    pass
else:
    raise SystemExit("the package was importable")
for folder in sys.argv[1:]:
    flow = tf.saved_model.load(folder + "/model")
    x = tf.constant(np.load(folder + "/x.npy"))
    variables = sorted(flow.trainable_variables, key=lambda variable: variable.name)
    with tf.GradientTape() as tape:
        tape.watch(x)
        log_prob = flow.log_prob(x)
    gradients = tape.gradient(log_prob, [x, *variables])
    results = {"log_prob": log_prob, "one": flow.log_prob(x[:1]), "sample": flow.sample(7, [1, 2])}
    results |= {f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}
    served = flow.signatures["sample"](n=tf.constant(7), seed=tf.constant([1, 2]))
    results |= {"served sample": served["output_0"]}
    results |= {"served": flow.signatures["serving_default"](x=x)["output_0"]}
    if hasattr(flow, "sample_exact"):
        results |= {"sample_exact": flow.sample_exact(7, [1, 2])}
        results |= {"decode_exact": flow.decode_exact(flow.encode(x))}
    if hasattr(flow, "encode"):
        results |= {"encode": flow.encode(x), "decode": flow.decode(flow.encode(x))}
    np.savez(folder + "/results.npz", **results)
"""


def dense_flow_of_images():
    return sn.dense_flow((2, 2), preprocessing=sn.images.pixel_sigmoid(4), activation="spline", seed=1)


def conv_flow_of_images():
    pixels = sn.images.pixel_sigmoid(4)
    return sn.conv_flow(
        (4, 4, 1),
        num_blocks=2,
        layers_per_block=1,
        activation="spline",
        preprocessing=pixels,
        seed=1,
        gradient="self_norm",
    )


def glow_flow_of_images():
    return sn.glow_flow(
        (4, 4, 1), num_blocks=2, steps_per_block=1, width=4, preprocessing=sn.images.pixel_sigmoid(4), seed=1
    )


def plain_distribution():
    return tfp.distributions.Independent(
        tfp.distributions.Normal(tf.Variable(tf.ones([2, 2])), 2.0), reinterpreted_batch_ndims=2
    )


FLOWS = (dense_flow_of_images, conv_flow_of_images, glow_flow_of_images, plain_distribution)


@pytest.fixture(scope="module", params=FLOWS)
def exported(request, tmp_path_factory):
    """A trained model, its data, and the results of a process without the package on its SavedModel."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    model = sn.FlowModel(request.param(), inverse_learning=sn.Reconstruction())
    event_shape = model.distribution.event_shape
    x = np.random.default_rng(1).uniform(0.1, 3.9, [50, *event_shape]).astype(np.float32)
    model.adapt(x)
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    model.fit(x, epochs=2, batch_size=25, verbose=0)
    # The learned inverse comes close to the inverse, and stays another map.
    for layer in sn.self_norm_layers(model.distribution):
        layer.forward_kernel.assign(1.001 * layer.forward_kernel)
    np.save(folder / "x.npy", x)
    model.export(folder / "model")
    subprocess.run([sys.executable, "-I", "-c", SCORE, folder], check=True)
    return model, x, np.load(folder / "results.npz")


def test_a_process_without_the_package_gets_the_same(exported):
    model, x, results = exported
    np.testing.assert_allclose(results["log_prob"], model.log_prob(x), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(results["one"], model.log_prob(x[:1]), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(results["served"], results["log_prob"], rtol=1e-5)
    np.testing.assert_allclose(results["sample"], model.sample(7, seed=(1, 2)), atol=1e-4)
    np.testing.assert_allclose(results["served sample"], results["sample"], atol=1e-5)
    if not hasattr(model.distribution, "bijector"):
        assert "encode" not in results
        assert "sample_exact" not in results
        return
    np.testing.assert_allclose(results["sample_exact"], model.sample(7, (1, 2), exact=True), atol=1e-4)
    assert np.abs(results["sample_exact"] - results["sample"]).max() > 1e-6
    np.testing.assert_allclose(results["encode"], model.encode(x), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(results["decode"], model.reconstruct(x), atol=1e-4)
    np.testing.assert_allclose(results["decode_exact"], x, atol=1e-3)


def test_gradients_are_kept(exported):
    """Those of the data and of the variables, exact, in which a learned inverse has no part."""
    model, x, results = exported
    variables = sorted((v.value for v in model.trainable_variables), key=lambda variable: variable.name)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        log_prob = model.log_prob(x)
    gradients = tape.gradient(log_prob, [x, *variables])
    for i, gradient in enumerate(gradients):
        assert (gradient is None) == (f"gradient {i}" not in results)
        if gradient is None:
            assert "forward_kernel" in variables[i - 1].name
            continue
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(results[f"gradient {i}"], gradient, atol=1e-4 * scale, rtol=1e-4)


def test_a_distribution_without_a_latent_is_scored_and_sampled(tmp_path):
    model = sn.FlowModel(plain_distribution())
    model.export(tmp_path / "model")
    loaded, x = tf.saved_model.load(tmp_path / "model"), tf.ones([3, 2, 2])
    np.testing.assert_allclose(loaded.log_prob(x), model.log_prob(x), rtol=1e-5)
    np.testing.assert_allclose(loaded.sample(7, [1, 2]), model.sample(7, seed=(1, 2)), atol=1e-5)
    assert not hasattr(loaded, "encode")
    assert not hasattr(loaded, "sample_exact")


def test_a_failure_leaves_no_folder(tmp_path, monkeypatch):
    def fail(self, folder, **options):
        pathlib.Path(folder).mkdir()
        (pathlib.Path(folder) / "part").write_text("...")
        raise OSError("disk full")

    monkeypatch.setattr(type(keras.export.ExportArchive()), "write_out", fail)
    with pytest.raises(OSError, match="disk full"):
        sn.FlowModel(plain_distribution()).export(tmp_path / "new" / "model")
    assert not list((tmp_path / "new").iterdir())


def test_an_exact_sample_may_first_be_asked_for_inside_a_graph():
    """Its parts are made on that occasion, and must outlive the graph."""
    options = {"act_norm": False, "centering": False, "seed": 1}
    model = sn.FlowModel(sn.glow_flow((4, 4, 1), num_blocks=2, steps_per_block=1, width=4, **options))
    sample = tf.function(lambda: model.sample(3, seed=1, exact=True))()
    np.testing.assert_allclose(model.sample(3, seed=1, exact=True), sample, atol=1e-5)


def test_exact_endpoints_solve_with_w(tmp_path):
    kernel = np.float32([[2.0, 1.0], [0.0, 1.5]])
    layer = sn.SelfNormDense(*(tf.Variable(k) for k in (0.8 * np.linalg.inv(kernel), kernel)))
    base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), 2)
    model = sn.FlowModel(tfp.distributions.TransformedDistribution(base, layer), inverse_learning=None)
    model.export(tmp_path / "model")
    flow = tf.saved_model.load(tmp_path / "model")
    z = tf.constant([[1.0, -2.0], [0.5, 3.0]])
    np.testing.assert_allclose(flow.decode_exact(z), np.linalg.solve(kernel, z.numpy().T).T, rtol=1e-5)
    np.testing.assert_allclose(flow.decode(z), 0.8 * flow.decode_exact(z), rtol=1e-5)
    np.testing.assert_allclose(flow.sample(3, [1, 2]), 0.8 * flow.sample_exact(3, [1, 2]), rtol=1e-5)
