"""An extension of griffe: examples in docstrings become blocks of code."""

import re

import griffe

# Lines from `>>>` to the next empty line.
_EXAMPLE = re.compile(r"(?:^ *>>> .*\n?(?:^ *\S.*\n?)*)", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Puts each example of a docstring into a fence."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match):
    text = match.group(0)
    indent = text[: len(text) - len(text.lstrip())]
    return f"{indent}```pycon\n{text.rstrip()}\n{indent}```\n"
