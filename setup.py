"""Packaging of tfp_selfnorm; the settings of tools are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "tfp_selfnorm/__init__.py").read_text())[1]

EXAMPLES = [
    "tensorflow-datasets>=4.9.10",
    # tensorflow-datasets imports it to prepare a data set and does not ask for it.
    "importlib_resources>=6.0",
    "scikit-learn>=1.5",
    "matplotlib>=3.9",
]

setup(
    name="tfp_selfnorm",
    version=VERSION,
    description="Self-normalizing flows for TensorFlow Probability and Keras",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tfp_selfnorm", "tfp_selfnorm.*"]),
    package_data={"tfp_selfnorm": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "tensorflow>=2.18.1",
        "tensorflow-probability[tf]>=0.25",
        "keras>=3.10",
        "numpy>=1.26",
        # The tables of Keras's summaries, and ours.
        "rich>=13.0",
    ],
    extras_require={
        "examples": EXAMPLES,
        "dev": [
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.17",
            "tensorboard>=2.18",
            "pandas>=2.2",
            "setuptools>=77",
            *EXAMPLES,
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
