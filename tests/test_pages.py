"""The Python of each page of the documentation runs as shown, and prints what the page says."""

import contextlib
import functools
import io
import pathlib
import re
import types

import keras
import pytest

import tfp_selfnorm as sn

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs" / "pages"
PAGES = [pathlib.Path("README.md"), *sorted(page.relative_to(ROOT) for page in DOCS.rglob("*.md"))]
API = sorted((DOCS / "api").glob("*.md"))
# A block of Python and, if one follows at once, the block of text that it prints.
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n?^```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [p for p in PAGES if "```python\n" in (ROOT / p).read_text()], ids=str)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    keras.utils.set_random_seed(1)
    text, names = (ROOT / page).read_text(), {"__name__": "__page__"}
    for block in _BLOCK.finditer(text):
        code, expected = block.groups()
        line = text[: block.start(1)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Errors show the line of the page.
            exec(compile("\n" * line + code, str(ROOT / page), "exec"), names)
        if expected is not None:
            assert printed.getvalue().split() == expected.split(), f"{page}, line {line}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_public_name_has_a_place_in_the_reference():
    text = "\n".join(path.read_text() for path in API)
    described = re.findall(r"^::: tfp_selfnorm\.(\S+)$", text, re.MULTILINE)
    assert len(described) == len(set(described))
    # Some names stand for one object, such as `ActNorm` and `bijectors.ActNorm`.
    found = {id(functools.reduce(getattr, name.split("."), sn)) for name in described}
    modules = [sn, *(value for value in vars(sn).values() if isinstance(value, types.ModuleType))]
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        for name in getattr(module, "__all__", public_names(module))
        if id(value := getattr(module, name)) not in found and not isinstance(value, types.ModuleType)
    ]
    assert missing == []


def public_names(module):
    """Functions and classes of a file without `__all__`, if its module is public."""
    if module.__name__.removeprefix("tfp_selfnorm.") not in sn.__all__:
        return []
    named = ((name, getattr(value, "__module__", "")) for name, value in vars(module).items())
    return [name for name, home in named if home == module.__name__ and not name.startswith("_")]
