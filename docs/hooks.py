"""What MkDocs does beside its plugins: tables of objects, links to other libraries, pictures."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parent.parent
ELSEWHERE = Path(__file__).parent / "elsewhere.txt"
OBJECTS = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)
TABLE = "<!-- objects -->"  # stands where the table of all objects goes


def on_env(env: Any, /, *, config: Any, files: Any) -> None:
    """Tell the plugin of cross-references where the objects of other libraries are described.

    mkdocstrings would fetch their inventories from the network at each build. The few that are used stand in a file.
    """
    for line in ELSEWHERE.read_text(encoding="utf-8").splitlines():
        name, address = line.split()
        config.plugins["autorefs"].register_url(name, address)


def on_page_markdown(
    markdown: str, /, *, page: Any, config: Any, files: Any
) -> str:
    """Put a table of its objects on top of every reference page that has several, and of all of them on the first."""
    if TABLE in markdown:
        return markdown.replace(TABLE, "\n\n".join(_sections(config.nav)))
    names = OBJECTS.findall(markdown)
    if len(names) > 1:
        before, first, after = markdown.partition("\n::: ")
        return f"{before}\n{_table(names)}\n{first}{after}"
    return markdown


def on_page_content(html: str, /, *, page: Any, config: Any, files: Any) -> str:
    """Let a click on a picture open it alone, in its own size."""
    return re.sub(
        r'<img\b[^>]*? src="([^"]+)"[^>]*>',
        r'<a class="picture" href="\1">\g<0></a>',
        html,
    )


def _sections(nav: list[Any]) -> list[str]:
    """A heading and a table for each part of the reference, in the order of the navigation."""
    reference = next(
        entry["Reference"] for entry in nav if "Reference" in entry
    )
    sections = []
    for entry in reference:
        for title, pages in entry.items() if isinstance(entry, dict) else ():
            names = [
                name
                for page in pages
                for name in OBJECTS.findall(
                    (ROOT / "docs" / page).read_text("utf-8")
                )
            ]
            sections.append(f"## {title}\n\n{_table(names)}")
    return sections


def _table(names: list[str]) -> str:
    """One line for each object: its name, and the first sentence of its docstring."""
    rows = ["| object | what it is |", "|---|---|"]
    for name in names:
        sentence = summary(name).replace("|", "\\|")
        rows.append(f"| [`{name.rpartition('.')[2]}`][{name}] | {sentence} |")
    return "\n".join(rows)


def summary(name: str) -> str:
    """The first paragraph of an object's docstring, on one line."""
    docstring = _package()[name.removeprefix("seqjepa.")].docstring
    return (
        " ".join(docstring.value.split("\n\n")[0].split()) if docstring else ""
    )


@cache
def _package() -> Any:
    return griffe.load(
        "seqjepa", search_paths=[str(ROOT)], resolve_aliases=True
    )
