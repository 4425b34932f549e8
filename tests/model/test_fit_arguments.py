"""Other arguments of Keras's methods that are refused with their cause, and models that cannot be used."""

import keras
import numpy as np
import pytest
from test_fit_data import X, gaussian
from test_fit_data_errors import refuses

import tfp_selfnorm as sn


@pytest.fixture(scope="module")
def model():
    model = sn.FlowModel(gaussian())
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    return model


@pytest.mark.parametrize("value", [0, -1, 2.5, "a"])
def test_counts_that_are_refused(model, value):
    counts = ["batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size"]
    for name in counts + ["epochs"] * (value != 0):
        refuses(ValueError, f"`{name}` must be a positive int", lambda: model.fit(X, **{name: value}))  # noqa: B023
    for method in (model.evaluate, model.predict):
        for name in ("batch_size", "steps"):
            refuses(ValueError, f"`{name}` must be a positive int", lambda: method(X, **{name: value}))  # noqa: B023


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": None}, "`optimizer` must be a Keras optimizer, or its name; got None"),
        ({"optimizer": keras.optimizers.Adam}, "Could not interpret optimizer"),
        ({"loss": "mse"}, "`loss` must be None"),
        ({"loss_weights": [1.0]}, "`loss_weights` must be None"),
        ({"metrics": ["mae"]}, "`metrics` must be None"),
        ({"weighted_metrics": ["mae"]}, "`weighted_metrics` must be None"),
        ({"steps_per_execution": 0}, "`steps_per_execution` must be a positive int"),
        ({"max_skipped_updates": 0}, "`max_skipped_updates` must be a positive int"),
    ],
    ids=str,
)
def test_compile_refuses_and_changes_nothing(model, arguments, message):
    optimizer, steps = model.optimizer, model.steps_per_execution
    refuses(ValueError, message, lambda: model.compile(**arguments))
    assert model.optimizer is optimizer
    assert (model.steps_per_execution, model.run_eagerly) == (steps, True)


def test_a_singular_kernel_is_named_by_samples_of_the_exact_inverse():
    model = sn.FlowModel(sn.dense_flow(3, seed=1))
    sn.self_norm_layers(model.distribution)[1].inverse_kernel.assign(np.diag([1.0, 0.0, 1.0]))
    for call in (
        lambda: model.sample(2, exact=True),
        lambda: model.decode(X, exact=True),
        lambda: model.reconstruct(X, exact=True),
    ):
        refuses(ValueError, "`dense_1` is -inf: the kernel is singular", call)
    refuses(ValueError, "`dense_1` has no inverse: it is singular", lambda: model.sample(2))


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_no_events(num_blocks):
    """TensorFlow's convolutions of no images have the wrong number of channels."""
    model = sn.FlowModel(sn.glow_flow((8, 8, 1), num_blocks=num_blocks, steps_per_block=1, width=4, seed=1))
    model.adapt(np.random.default_rng(1).normal(size=[8, 8, 8, 1]))
    none = np.zeros([0, 8, 8, 1], np.float32)
    assert model.log_prob(none).shape == [0]
    assert model.reconstruct(none).shape == none.shape
    assert model.sample(0).shape == none.shape
