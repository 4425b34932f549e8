"""Checks, seeds, files: what all folders share."""
