"""The maps of the baselines, as functions of tensors."""
