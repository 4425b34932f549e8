"""Measures how sharp the tests are: draws small changes of the code, one at a time, and runs the tests.

    python tests/helpers/mutants.py --output FILE.csv [--count 60] [--seed 16]

Needs `cosmic-ray` (8.7 was tried). Each mutant is a mutation of cosmic-ray at a place that was
drawn at random from the folders `FOLDERS`; the tests are those of `make test`, those of the mutant's folder
first, and end at the first failure. A mutant that fails a test is killed. The file has a line for each
mutant; those that stand in it already are not run again. Run it in a clone: it changes files.
"""

import argparse
import csv
import pathlib
import random
import subprocess
import sys
import time

import cosmic_ray.mutating
import cosmic_ray.plugins
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


def run(mutation, python):
    """A row of the table."""
    path = pathlib.Path(mutation.module_path)
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**dict(mutation.operator_args or {}))
    with cosmic_ray.mutating.use_mutation(path, operator, mutation.occurrence) as (before, after):
        lines = zip(before.splitlines(), after.splitlines(), strict=False)
        number, old, new = next((i, a, b) for i, (a, b) in enumerate(lines, 1) if a != b)
        start = time.perf_counter()
        outcome, killed_by = "survived", ""
        folder = path.relative_to(ROOT / "tfp_selfnorm").parts[0]
        for tests in ([f"tests/{folder}"], []):
            command = [python, "-m", "pytest", "-n", "2", "-x", "-q", "-m", "not slow", "--tb=no", *tests]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
            if result.returncode:
                failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                outcome, killed_by = "killed", (failed or ["import"])[0].split(" - ")[0]
                break
        seconds = round(time.perf_counter() - start)
    module = path.relative_to(ROOT)
    return dict(
        zip(COLUMNS, (module, number, old.strip(), new.strip(), outcome, killed_by, seconds), strict=True)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the tests")
    arguments = parser.parse_args()
    done = len(list(csv.DictReader(arguments.output.open()))) if arguments.output.exists() else 0
    with arguments.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for mutation in drawn(arguments.count, arguments.seed)[done:]:
            row = run(mutation, arguments.python)
            writer.writerow(row)
            file.flush()
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
