"""What is inside a TFP object: layers, variables, networks, names."""
