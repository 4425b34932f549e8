"""Writes a flow as a SavedModel that needs neither this package nor TFP."""

import pathlib

import keras
import tensorflow as tf

from tfp_selfnorm.checks import has_latent


def export_flow(model, filepath) -> None:
    """See `FlowModel.export`."""
    folder = pathlib.Path(filepath)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`filepath` must be an empty or absent folder; {str(folder)!r} is neither.")
    distribution = model.distribution
    events = tf.TensorSpec([None, *distribution.event_shape], distribution.dtype, "x")
    endpoints = {
        "log_prob": (model.log_prob, [events]),
        "sample": (
            lambda n, seed: distribution.sample(n, seed=seed),
            [tf.TensorSpec([], tf.int32, "n"), tf.TensorSpec([2], tf.int32, "seed")],
        ),
    }
    if has_latent(distribution):
        base = distribution.distribution
        latent = tf.TensorSpec([None, *base.event_shape], base.dtype, "z")
        endpoints["encode"] = (model.encode, [events])
        endpoints["decode"] = (model.decode, [latent])
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, (function, signature) in endpoints.items():
        archive.add_endpoint(name, function, signature)
    archive.write_out(str(folder), verbose=False)
