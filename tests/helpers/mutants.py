"""Measures how sharp the tests are: draws small changes of the code, one at a time, and runs the tests.

    python -m pytest -n 2 -m "not slow" --cov=tfp_selfnorm --cov-context=test
    python tests/helpers/mutants.py --output FILE.csv [--count 60] [--seed 16] [--python PYTHON]

Needs `cosmic-ray` (8.7 was tried) and `pytest-cov` (7.1). Each mutant is a mutation of cosmic-ray at a
place that was drawn at random from the folders `FOLDERS`. The first command runs the tests of `make test`.
It keeps in `.coverage` which test runs which line. The second command runs the tests that run the line of
the mutant, first the tests of its folder and those that run few lines, and ends at the first failure. All
tests run for a line that an import runs. A mutant that fails a test is killed. A line in a function that is
compiled once counts for the first test alone, so run all tests on a survivor. The file has a line for each
mutant; those that stand in it already are not run again. Run it in a clone: it changes files.
"""

import argparse
import ast
import collections
import csv
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import cosmic_ray.mutating
import cosmic_ray.plugins
import coverage
from cosmic_ray.commands.init import _all_work_items

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("math", "bijectors", "inverse_learning", "model")
COLUMNS = ("module", "line", "before", "after", "outcome", "killed_by", "seconds")
# They change annotations, types of exceptions and decorators, which is not what tests are for.
LEFT_OUT = ("core/ExceptionReplacer", "core/RemoveDecorator")


def drawn(count, seed):
    """So many mutations: places are drawn first, then one of the mutations of a place."""
    modules = [path for folder in FOLDERS for path in sorted((ROOT / "tfp_selfnorm" / folder).rglob("*.py"))]
    places = {}
    for item in _all_work_items(modules, {}):
        (mutation,) = item.mutations
        if mutation.operator_name not in LEFT_OUT and "NumberReplacer" not in mutation.operator_name:
            places.setdefault((str(mutation.module_path), mutation.start_pos), []).append(mutation)
    generator = random.Random(seed)
    return [generator.choice(places[place]) for place in generator.sample(sorted(places), count)]


def lines_of_tests(data):
    """The number of lines that each test runs: a small number is a test of few things, and a fast one."""
    numbers = collections.Counter()
    for path in data.measured_files():
        for contexts in data.contexts_by_lineno(path).values():
            numbers.update({context.rsplit("|", 1)[0] for context in contexts})
    return numbers


def tests_of(path, line, data, numbers):
    """The identifiers of the tests that run the statement with the line; none if an import runs it.

    First come the tests of the folder, and among them those that run few lines.
    """
    tree = ast.parse(path.read_text())
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and _first_line(node) <= line <= node.end_lineno
    ]
    statement = max(around, key=lambda node: node.lineno)
    contexts = data.contexts_by_lineno(str(path))
    found = {
        context.rsplit("|", 1)[0]
        for number in range(statement.lineno, min(statement.end_lineno, line) + 1)
        for context in contexts.get(number, ())
    }
    folder = f"tests/{path.relative_to(ROOT / 'tfp_selfnorm').parts[0]}/"
    return sorted(found - {""}, key=lambda test: (not test.startswith(folder), numbers[test]))


def _first_line(statement):
    """The line where the statement begins, with its decorators."""
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])


def first_failure(python, tests):
    """The identifier of the first test that fails, or an empty string."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(tests))
        file.flush()
        command = [
            python,
            "-m",
            "pytest",
            "-n",
            "2",
            "-x",
            "-q",
            "-m",
            "not slow",
            "--tb=no",
            f"@{file.name}",
        ]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    if not result.returncode:
        return ""
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed or ["import"])[0].split(" - ")[0]


def run(mutation, python, data, numbers):
    """A row of the table."""
    path = pathlib.Path(mutation.module_path)
    tests = tests_of(path, mutation.start_pos[0], data, numbers)
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**dict(mutation.operator_args or {}))
    with cosmic_ray.mutating.use_mutation(path, operator, mutation.occurrence) as (before, after):
        lines = zip(before.splitlines(), after.splitlines(), strict=False)
        number, old, new = next((i, a, b) for i, (a, b) in enumerate(lines, 1) if a != b)
        start = time.perf_counter()
        killed_by = first_failure(python, tests or ["tests", "tfp_selfnorm"])
        seconds = round(time.perf_counter() - start)
    outcome = "killed" if killed_by else "survived"
    row = (path.relative_to(ROOT), number, old.strip(), new.strip(), outcome, killed_by, seconds)
    return dict(zip(COLUMNS, row, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the tests")
    arguments = parser.parse_args()
    data = coverage.CoverageData(str(ROOT / ".coverage"))
    data.read()
    numbers = lines_of_tests(data)
    done = len(list(csv.DictReader(arguments.output.open()))) if arguments.output.exists() else 0
    with arguments.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for mutation in drawn(arguments.count, arguments.seed)[done:]:
            row = run(mutation, arguments.python, data, numbers)
            writer.writerow(row)
            file.flush()
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
