"""Seeds: the same integer gives the same numbers, at every call."""

import numpy as np
import tensorflow_probability as tfp


def stateless_seed(seed, salt=None):
    """A stateless seed from a TFP seed; an integer counts as itself, whatever was drawn before.

    TFP takes an integer as a seed of TensorFlow's stateful generators, whose numbers also depend on the
    global seed and on how often one was used. `None` gives a fresh seed.
    """
    if isinstance(seed, (int, np.integer)):
        seed = (0, int(seed))
    return tfp.random.sanitize_seed(seed, salt=salt)
