"""Pure functions on tensors: no variables, no classes."""
