"""Keras's methods that a `FlowModel` is fed through: `fit`, `evaluate`, `predict`, and those of one batch."""

import contextlib

from tfp_selfnorm.initialization import check_adapted
from tfp_selfnorm.model.batches import FitData
from tfp_selfnorm.model.data import prepare, prepare_batch, prepare_validation
from tfp_selfnorm.model.streams import naming_the_batch
from tfp_selfnorm.utils.integers import check_counts


class FlowFit:
    """They take Keras's parameters, look at the data first, and name what is wrong with them."""

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Keras's `fit`, without targets.

        Args:
          x: events: an array of any library, a `tf.data.Dataset` of batches, or what else Keras takes.
          y: labels; they are ignored, but for `class_weight`.
          batch_size: as Keras's, and so are the arguments that are not named here.
          validation_data: events, in a form that `x` may have, or a tuple or list that begins with them:
            `(x,)`, `(x, y)` or `(x, y, sample_weight)`; `y` may be `None`.
          class_weight: weights of the labels, in place of `sample_weight`. sample_weight: one weight an
          example, 0 or more; weighs the likelihoods, not the regularizer. As with
            Keras's losses the weighted sum is divided by the number of examples; `nll` is the weighted mean.
            Data sets hold them: `(x, y, sample_weight)`.

        Raises:
          TypeError: if `x` or `validation_data` is of no form that has events, or not floating.
          ValueError: if they are no batches of events; if an array or a batch has values or weights that are
            not finite, saying where; if a kernel becomes singular, naming the layer; if too many updates in
            a row were not finite.
        """
        check_counts(
            batch_size=batch_size,
            epochs=epochs or None,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
        )
        data = prepare(x, self.distribution, y, sample_weight, class_weight)
        if validation_data is not None:
            validation_data = prepare_validation(validation_data, self.distribution)
        check_adapted(self.distribution)
        self._step = None
        with naming_the_batch():
            history = super().fit(
                *data[:2],
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_split=validation_split,
                validation_data=validation_data,
                shuffle=shuffle,
                class_weight=class_weight,
                sample_weight=data.sample_weight,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
            )
        self._check_guard()
        # Keras may have put the averages of the kernels in their place.
        self._refresh.set_inverses()
        return history

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Keras's `evaluate`, with exact likelihoods: the log-dets are computed once, at its start.

        Takes events and weights, and raises, as `fit` does.
        """
        check_counts(batch_size=batch_size, steps=steps)
        data = FitData(x, y, sample_weight)
        # Within `fit` Keras has made its iterator of the validation data, which are checked.
        if not kwargs.get("_use_cached_eval_dataset", False):
            data = prepare(x, self.distribution, y, sample_weight)
        check_adapted(self.distribution)
        self._evaluation_begins = True
        with naming_the_batch(), self._evaluating():
            return super().evaluate(
                *data[:2],
                batch_size=batch_size,
                verbose=verbose,
                sample_weight=data.sample_weight,
                steps=steps,
                callbacks=callbacks,
                return_dict=return_dict,
                **kwargs,
            )

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Keras's `train_on_batch`; takes events and weights as `fit` does."""
        check_adapted(self.distribution)
        x, y, sample_weight = prepare_batch(x, self.distribution, y, sample_weight, class_weight)
        return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Keras's `test_on_batch`, with exact likelihoods; takes events and weights as `fit` does."""
        check_adapted(self.distribution)
        x, y, sample_weight = prepare_batch(x, self.distribution, y, sample_weight)
        self._evaluation_begins = True
        with self._evaluating():
            return super().test_on_batch(x, y, sample_weight, return_dict)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """The exact log density of each event, batch by batch; the log-dets are computed once.

        Takes events, and raises, as `fit` does.
        """
        check_counts(batch_size=batch_size, steps=steps)
        data = prepare(x, self.distribution)
        check_adapted(self.distribution)
        self._evaluation_begins = True
        with naming_the_batch():
            return super().predict(data.x, batch_size, verbose, steps, callbacks)

    def predict_on_batch(self, x):
        """The exact log density of each event of one batch."""
        check_adapted(self.distribution)
        x = prepare_batch(x, self.distribution).x
        self._evaluation_begins = True
        return super().predict_on_batch(x)

    @contextlib.contextmanager
    def _evaluating(self):
        self._is_evaluating = True
        try:
            yield
        finally:
            self._is_evaluating = False
