"""The Python of each page of the documentation runs as shown, and prints what the page says."""

import contextlib
import io
import pathlib
import re

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
    names = set(sn.__all__)
    for module in (sn.baselines, sn.bijectors, sn.callbacks, sn.images):
        names.remove(module.__name__.split(".")[-1])
        names |= {f"{module.__name__}.{name}".removeprefix("tfp_selfnorm.") for name in public_names(module)}
    names.remove("flows")
    described = re.findall(r"^::: tfp_selfnorm\.(\S+)$", "\n".join(p.read_text() for p in API), re.MULTILINE)
    assert len(described) == len(set(described))
    ends = {name.split(".")[-1] for name in described}
    assert sorted(name for name in names if name.split(".")[-1] not in ends) == []


def public_names(module):
    own = [
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
    ]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])
