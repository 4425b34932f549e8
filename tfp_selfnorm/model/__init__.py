"""The Keras model of a flow, and its training."""
