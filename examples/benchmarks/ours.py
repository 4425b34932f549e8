"""Fits of `tfp_selfnorm`, for `tables.py` and `sbi.py`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rules import FACTOR, PATIENCES, Clock

import tfp_selfnorm as sn

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


class Limit(keras.callbacks.Callback):
    """Ends the training after some CPU seconds."""

    def __init__(self, clock, limit):
        super().__init__()
        self.clock, self.limit, self.first = clock, limit, None

    def on_epoch_end(self, epoch, logs=None):
        self.first = self.first or self.clock.seconds()
        if self.clock.seconds() > self.limit:
            self.model.stop_training = True


class Fit:
    """A flow that was fitted; its arrays are those of numpy."""

    def __init__(self, method, options, rate, weight_decay, train, validation, rules, seed):
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        options, clock = dict(options), Clock()
        events, condition = train if isinstance(train, tuple) else (train, None)
        whitens = options.pop("whitens", False)
        if condition is not None:
            options["condition_shape"] = condition.shape[1:]
        # Networks with learned inverses are sampled by their decoders, as their authors do.
        weight = options.pop("reconstruction", None)
        self.samples_exactly = weight is None
        learning = sn.Tracking(reconstruction=sn.Reconstruction(weight=1.0 if weight is None else weight))
        flow = getattr(sn, method)(events.shape[1:], seed=seed, **options)
        kind = sn.FlowModel if condition is None else sn.ConditionalFlowModel
        self.model = kind(flow, inverse_learning=learning)
        if whitens:
            self.model.adapt(*_order(train), whitens=True)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay, global_clipnorm=rules.clip)
        # A decay of W would pull against its log-det.
        optimizer.exclude_from_weight_decay(var_names=["inverse_kernel", "forward_kernel"])
        self.model.compile(optimizer)
        limit = Limit(clock, rules.limit)
        watched = {"monitor": "val_nll", "mode": "min", "min_delta": 0.0}
        history = self.model.fit(
            *_order(train),
            batch_size=rules.batch_size,
            epochs=rules.max_epochs,
            validation_data=_order(validation),
            validation_batch_size=len(validation[0] if condition is not None else validation),
            callbacks=[
                keras.callbacks.ReduceLROnPlateau(**watched, factor=FACTOR, patience=rules.patience),
                keras.callbacks.EarlyStopping(
                    **watched, patience=PATIENCES * rules.patience, restore_best_weights=True
                ),
                limit,
            ],
            verbose=0,
        ).history
        self.figures = {
            "val_nll": float(np.min(history["val_nll"])),
            "epochs": len(history["val_nll"]),
            "first_epoch_s": limit.first,
            "fit_s": clock.seconds(),
            "parameters": int(sum(np.prod(v.shape) for v in self.model.trainable_variables)),
        }

    def log_prob(self, events, condition=None):
        if condition is None:
            return self.model.log_prob(events).numpy()
        return self.model.log_prob(events, condition).numpy()

    def sample(self, n, condition, seed):
        """Samples `[n, *batch, dimensions]` for each condition."""
        return self.model.sample(n, condition, seed=seed, exact=self.samples_exactly).numpy()


def _order(data):
    """Keras takes the input, the condition, first."""
    return (data[1], data[0]) if isinstance(data, tuple) else (data,)
