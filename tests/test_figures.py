"""Each figure in the tables of the results is one of the raw files that its section names."""

import collections
import csv
import fnmatch
import functools
import math
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "results"
PAGES = sorted((ROOT / "docs" / "pages" / "results").glob("*.md"))
SPREAD = re.compile(r"([-\d.]+) ± ([\d.]+)")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)")
# Figures of the papers, which no file here holds.
OF_PAPERS = "the paper"
# Not measured, or computed from the file: the seed says which rows are alike, and the others which row it is.
NO_FIGURES = {"seed", "date", "command"}
# A column that is computed from another one, of the images of 32x32x3.
DERIVED = {"bits": lambda row: row["test_nll"] / (3072 * math.log(2))}
# Scripts with a command `table`, which chooses rows.
SCRIPTS = {
    "benchmark_tables_zuko.csv": "tables.py",
    "benchmark_sbi.csv": "sbi.py",
    "benchmark_side_by_side.csv": "side_by_side.py",
}


def numbers(row):
    found = {}
    for name, text in row.items():
        try:
            found[name] = float(text)
        except (TypeError, ValueError):
            continue
    for name, function in DERIVED.items():
        try:
            found[name] = function(found)
        except KeyError:
            continue
    return found


@functools.cache
def figures_of(path):
    """The numbers of a file, and the means with sample deviations over rows that differ in numbers alone."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    figures, spreads, alike = set(), set(), collections.defaultdict(list)
    for row in rows:
        found = numbers(row)
        figures.update(found.values())
        alike[tuple(v for k, v in row.items() if k not in found and k not in NO_FIGURES)].append(found)
    for group in alike.values():
        for name in set().union(*group):
            values = [found[name] for found in group if name in found]
            if len(values) > 1:
                spreads.add((statistics.mean(values), statistics.stdev(values)))
    if path.name in SCRIPTS:
        command = [
            sys.executable,
            ROOT / "examples" / "benchmarks" / SCRIPTS[path.name],
            "table",
            "--csv",
            path,
        ]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures.update(float(token) for token in NUMBER.findall(printed))
        spreads.update(tuple(map(float, pair)) for pair in SPREAD.findall(printed))
    return figures.union(*spreads), spreads


def is_rounded(token, figures):
    """Whether one of the figures gives the digits of the token."""
    digits, _, exponent = token.partition("e")
    _, _, decimals = digits.partition(".")
    unit = 10.0 ** (int(exponent or 0) - len(decimals))
    if not decimals and not exponent:
        # 1030 may have three digits.
        unit = 10.0 ** (len(token) - len(token.rstrip("0"))) if len(token) > 3 else 1.0
    return any(abs(figure - float(token)) <= 0.5001 * unit for figure in figures)


def tables(page):
    """The cells with figures of each table, and the names of the files in its section."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for section in re.split(r"\n(?=#+ )", text):
        patterns = set(re.findall(r"`([\w*]+\.csv)`", section))
        names = sorted(
            path.name for path in RESULTS.iterdir() for p in patterns if fnmatch.fnmatch(path.name, p)
        )
        for block in re.split(r"\n\s*\n", section):
            if block.startswith("|"):
                header, _, *lines = (
                    [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
                )
                cells = [
                    cell
                    for line in lines
                    for title, cell in list(zip(header, line, strict=True))[1:]
                    if title and not title.startswith(OF_PAPERS)
                ]
                yield header, cells, names


CASES = [(page.stem, *table) for page in PAGES for table in tables(page)]


@pytest.mark.parametrize(
    ("page", "header", "cells", "names"), CASES, ids=[f"{c[0]}, {c[1][0]}" for c in CASES]
)
def test_each_figure_of_a_table_is_in_a_raw_file(page, header, cells, names):
    assert names, f"The section of the table {header} of {page} names no raw file."
    found = [figures_of(RESULTS / name) for name in names]
    figures, spreads = (set().union(*parts) for parts in zip(*found, strict=True))
    missing = [token for cell in cells for token in NUMBER.findall(cell) if not is_rounded(token, figures)]
    # The mean and the deviation must be of the same rows.
    missing += [
        pair
        for cell in cells
        for pair in SPREAD.findall(cell)
        if not any(all(map(is_rounded, pair, ({mean}, {deviation}))) for mean, deviation in spreads)
    ]
    assert not missing, f"{names} do not hold {missing}"
