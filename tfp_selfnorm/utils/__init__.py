"""Checks, seeds, files, types: shared by all folders."""
