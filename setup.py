"""For tools that still call it: the packaging is in pyproject.toml."""

from setuptools import setup

setup()
