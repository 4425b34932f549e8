"""Names for the types of arguments, as editors show them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# An array of numpy or of another library, a tensor, a variable, or nested lists of numbers.
Array = Any
# A `tf.Variable`, a tensor, or a `tfp.util.DeferredTensor` such as a `TransformedVariable`.
Parameter = Any
# A dtype of TensorFlow or numpy, or its name.
DType = tf.DType | np.dtype | type | str
# An int, a pair of ints, an int32 tensor of shape (2,), a stream of TFP, or `None` for fresh numbers.
Seed = Any
# A dimension or several: ints, a `tf.TensorShape`, an array or a tensor of ints.
Shape = int | Sequence[int] | tf.TensorShape | np.ndarray | tf.Tensor
# A distribution or bijector of TFP.
TfpObject = Any
