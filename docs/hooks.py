"""Hooks of mkdocs: the raw files of the results are part of the site, and linked where a page names them."""

import csv
import pathlib
import re

from mkdocs.structure.files import File

RESULTS = pathlib.Path(__file__).parents[1] / "examples" / "results"


def on_files(files, config):
    for path in sorted(RESULTS.iterdir()):
        files.append(File.generated(config, f"raw/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    up = "../" * page.file.src_uri.count("/")

    def link(match):
        name = match.group(1)
        return f"[`{name}`]({up}raw/{name})" if (RESULTS / name).exists() else match.group(0)

    markdown = re.sub(r"(?<!\[)`(\w+\.(?:csv|json))`", link, markdown)
    return markdown.replace("<!-- keras_life.csv -->", _table(RESULTS / "keras_life.csv"))


def _table(path):
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
