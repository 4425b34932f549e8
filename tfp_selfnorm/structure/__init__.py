"""The contents of a TFP object: layers, variables, networks, names."""
