"""How mkdocstrings reads our docstrings: sections that Griffe does not know, and methods that only fill in a base's."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe

OWN_SECTIONS = ("Shapes", "Source")
PAGES = Path(__file__).parent / "api"


class Sections(griffe.Extension):
    """Turn "Shapes:" and "Source:" into paragraphs, and list the methods that a base describes in full."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object, before it is parsed."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Once all is loaded: shorten the classes, now that their bases are known."""
        for module in [pkg, *submodules(pkg)]:
            for cls in module.classes.values():
                if not cls.is_alias:
                    list_what_a_base_describes(cls)


def submodules(module: griffe.Module) -> list[griffe.Module]:
    """All modules below one."""
    below = [child for child in module.modules.values() if not child.is_alias]
    return [
        *below,
        *(deeper for child in below for deeper in submodules(child)),
    ]


def list_what_a_base_describes(cls: griffe.Class) -> None:
    """Replace each method that overrides one of a base with a page, with a docstring of one line, by that line."""
    lines = []
    bases = [
        (base, public)
        for base in cls.mro()
        if (public := f"{base.module.parent.path}.{base.name}") in with_pages()
    ]
    for name, method in list(cls.members.items()):
        described = [found for found in bases if name in found[0].members]
        one_line = method.docstring and "\n" not in method.docstring.value
        if not name.startswith("_") and described and one_line:
            base, public = described[-1]
            lines.append(
                f"- [`{name}`][{public}.{name}]: {method.docstring.value}"
            )
            del cls.members[name]
    if lines and cls.docstring:
        title = f"**Methods, as [`{base.name}`][{public}] describes them:**"
        cls.docstring.value += "\n\n" + "\n".join([title, "", *lines])


@cache
def with_pages() -> set[str]:
    """The objects that a page of the reference describes."""
    pages = (path.read_text("utf-8") for path in PAGES.rglob("*.md"))
    return {
        name
        for page in pages
        for name in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)
    }


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
