"""How mkdocstrings reads our docstrings: sections that Griffe does not know, and methods that only fill in a base's."""

import re
from typing import Any

import griffe

OWN_SECTIONS = ("Shapes", "Source")


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
    """Replace each method that overrides a public base's, with a docstring of one line, by that line."""
    lines = []
    for name, method in list(cls.members.items()):
        described = [
            base
            for base in cls.mro()
            if not base.name.startswith("_") and name in base.members
        ]
        one_line = method.docstring and "\n" not in method.docstring.value
        if method.is_public and described and one_line:
            base = described[-1]
            public = f"{base.module.parent.path}.{base.name}"
            lines.append(
                f"- [`{name}`][{public}.{name}]: {method.docstring.value}"
            )
            del cls.members[name]
    if lines and cls.docstring:
        title = f"**Methods, as [`{base.name}`][{public}] describes them:**"
        cls.docstring.value += "\n\n" + "\n".join([title, "", *lines])


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
