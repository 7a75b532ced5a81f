"""How mkdocstrings reads our docstrings: sections that Griffe does not know stand as text."""

import re
from typing import Any

import griffe

OWN_SECTIONS = ("Shapes", "Source")


class Sections(griffe.Extension):
    """Before parsing, turn "Shapes:" and "Source:" into paragraphs."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(docstring: str) -> str:
    """The docstring with sections that Griffe's Google parser takes as they are meant."""
    lines: list[str] = []
    in_own_section = False
    for line in docstring.splitlines():
        title = re.fullmatch(r"(\w+):", line)
        if title:
            in_own_section = title[1] in OWN_SECTIONS
            line = f"**{title[1]}:**\n" if in_own_section else line
        elif in_own_section:
            line = line.removeprefix("    ")
        lines.append(line)
    return "\n".join(lines)
