"""How the learned inverse R follows W."""
