"""The layout of the package: which folders import which, and how large a file and a function may be."""

import ast
import pathlib
import re

import pytest
from slow_tests import SLOW

TESTS = pathlib.Path(__file__).parent
PACKAGE = TESTS.parent / "tfp_selfnorm"
# Each imports from itself and from those before it.
ORDER = (
    "utils",
    "math",
    "inverse_learning",
    "bijectors",
    "baselines",
    "structure",
    "images",
    "initialization",
    "flows",
    "tables",
    "model",
    "callbacks",
    "plot",
)
WITHOUT_KERAS = ("math", "bijectors", "inverse_learning")
# Their parameters are Keras's.
AS_IN_KERAS = ("fit", "compile", "evaluate")
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def part_of(path):
    """The folder that a file is in, or its own name at the root."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The names of the modules that a file imports, with the line of each."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "tfp_selfnorm":
            yield from ((f"tfp_selfnorm.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno


def out_of_order(path):
    """A sentence for each import of a later folder."""
    part = part_of(path)
    allowed = ORDER[: ORDER.index(part) + 1]
    for module, line in imported(path):
        found = module.split(".")[1] if module.startswith("tfp_selfnorm.") else part
        if found not in allowed:
            yield f"line {line}: {part} imports {module}; it may import {', '.join(allowed)}"


def needed_by(path, done):
    """All modules that a file imports, and those that the package's modules among them import."""
    for module, _ in imported(path):
        if module in done:
            continue
        done.add(module)
        if module.startswith("tfp_selfnorm."):
            stem = PACKAGE.joinpath(*module.split(".")[1:])
            needed_by(stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py"), done)
    return done


def length(function):
    """The number of lines of a function, without its docstring."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    documentation = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - documentation


def functions(path):
    """The functions and methods of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def test_at_the_root_stand_the_names_two_modules_and_the_folders():
    found = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__pycache__")}
    modules = {"__init__.py", "images.py", "initialization.py", "py.typed"}
    assert found == modules | (set(ORDER) - {"images", "initialization"})


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) in ORDER])
def test_a_folder_imports_from_itself_and_those_before_it(path):
    assert not list(out_of_order(path))


@pytest.mark.parametrize("part", WITHOUT_KERAS)
def test_bijectors_need_no_keras(part):
    for path in (PACKAGE / part).rglob("*.py"):
        assert not {module for module in needed_by(path, set()) if "keras" in module}, path


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_file_is_longer_than_350_lines_and_no_function_than_40(path):
    assert len(path.read_text().splitlines()) <= 350
    assert not {f.name: length(f) for f in functions(path) if length(f) > 40}


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_of_slow_tests_names_a_file_and_functions(pattern):
    name, function = re.match(r"(test_.+?\.py)::([\w()|]*)", pattern).groups()
    names = [path for path in TESTS.rglob("test_*.py") if re.fullmatch(name, path.name)]
    defined = [match for path in names for match in re.findall(r"^def (test_\w+)", path.read_text(), re.M)]
    assert [match for match in defined if re.match(function, match)]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_public_callable_has_more_than_eight_positional_parameters(path):
    found = {}
    for function in functions(path):
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        is_public = not function.name.startswith("_") or function.name == "__init__"
        if is_public and function.name not in AS_IN_KERAS:
            found[function.name] = len([name for name in names if name not in ("self", "cls")])
    assert not {name: count for name, count in found.items() if count > 8}
