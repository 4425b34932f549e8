"""What is shipped, and the files beside the package that must follow it."""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

import tfp_selfnorm
from tests.test_layout import ORDER

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
# A setuptools that imports the package to read its version fails here.
BUILD = """
import sys
sys.modules["tensorflow"] = None
from setuptools import build_meta
build_meta.build_sdist("dist")
"""


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory):
    """The names of the files in it, and its metadata."""
    root = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, root)
    for folder in ("tfp_selfnorm", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "data"))
    subprocess.run([sys.executable, "-I", "-c", BUILD], check=True, cwd=root, capture_output=True)
    (path,) = root.glob("dist/*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2]: name for name in archive.getnames()}
        return files, archive.extractfile(files["PKG-INFO"]).read().decode()


def test_the_source_distribution_has_all_of_the_package(source_distribution):
    files, _ = source_distribution
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "tfp_selfnorm").rglob("*.py")}
    beside = {"README.md", "LICENSE", "pyproject.toml"}
    assert package | beside | {"tfp_selfnorm/py.typed"} <= files.keys()


def test_a_build_reads_the_version_without_tensorflow(source_distribution):
    _, metadata = source_distribution
    assert f"\nVersion: {tfp_selfnorm.__version__}\n" in metadata


def test_the_citation_has_the_version_and_the_license_of_the_package(source_distribution):
    _, metadata = source_distribution
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {tfp_selfnorm.__version__}\n" in citation
    (license_name,) = re.findall("^license: (.+)$", citation, re.MULTILINE)
    assert f"\nLicense-Expression: {license_name}\n" in metadata


def test_the_configuration_of_the_hooks_is_valid():
    command = [sys.executable, "-m", "pre_commit", "validate-config", ROOT / ".pre-commit-config.yaml"]
    subprocess.run(command, check=True, cwd=ROOT)


def test_the_hooks_need_no_network():
    configuration = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall("repo: (.+)", configuration)) == {"local"}
    assert set(re.findall("language: (.+)", configuration)) == {"system", "pygrep"}


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:tfp_selfnorm|tests|examples)/[\w/.]*)`", GUIDE)))
)
def test_the_guide_names_files_that_exist(path):
    assert (ROOT / path).exists() or path.endswith("your_name.py")


@pytest.mark.parametrize(
    ("path", "name"), re.findall(r"`(tfp_selfnorm/[\w/.]+\.py)`: (?:class )?`(?:\w+\.)?(\w+)`", GUIDE)
)
def test_the_guide_names_what_is_in_the_file(path, name):
    definition = rf"^ *(?:def|class) {name}\b|^{name} = "
    assert re.search(definition, (ROOT / path).read_text(), re.MULTILINE)


def test_the_guide_shows_the_folders_in_their_order():
    tree = re.search(r"```\ntfp_selfnorm/\n(.+?)^tests/", GUIDE, re.DOTALL | re.MULTILINE)[1]
    assert tuple(re.findall(r"^  (\w+)(?:/|\.py) ", tree, re.MULTILINE)) == ORDER
