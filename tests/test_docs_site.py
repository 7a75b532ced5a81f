"""The site as it is built: whole, on its own feet, and everything public in it under its name."""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

pytest.importorskip("mkdocstrings", reason="pip install -e '.[docs]' builds the site")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OBJECTS = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)
PUBLIC = ("", ".baselines", ".data", ".data.readers", ".evaluation", ".groups", ".planning", ".training")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
WORDS = {  # what people look for, and a page that tells them
    "downstream": "guides/use-what-was-learnt/",
    "fine-tune": "guides/use-what-was-learnt/",
    "onnx": "guides/export/",
    "resume": "guides/long-runs/",
    "robot": "data/groups/",
    "seqjepa": "api/model/",
    "video": "guides/video/",
    "wandb": "guides/long-runs/",
}


class Page(HTMLParser):
    """What a page leads to, what it loads, and where links may end in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.pictures: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and "canonical" not in given.get("rel", ""):
            self.loaded.append(given["href"])
        if tag == "img":
            self.pictures.append(given["src"])
        if given.get(LOADED.get(tag, "")):
            self.loaded.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def is_elsewhere(address: str) -> bool:
    return bool(re.match(r"([a-z]+:)?//", address))


def test_every_link_and_every_file_of_the_site_is_there(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in (*page.links, *page.loaded):
            if is_elsewhere(address) or address.startswith(("mailto:", "data:")):
                continue
            file, anchor = urldefrag(unquote(address))
            end = (path.parent / file).resolve() if file else path
            end = end / "index.html" if end.is_dir() else end
            assert end.is_file(), f"{path.relative_to(site)} leads to {address}"
            assert not anchor or anchor in pages[end].anchors, f"{path.relative_to(site)} leads to {address}"


def test_the_site_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [address for address in page.loaded if is_elsewhere(address)], path
    for path in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", path.read_text(encoding="utf-8")):
            assert not is_elsewhere(address), path


def test_a_click_on_a_picture_opens_it(pages: dict[Path, Page]) -> None:
    assert any(page.pictures for page in pages.values())
    for path, page in pages.items():
        assert set(page.pictures) <= set(page.links), path


def navigation(entries: list[Any]) -> Iterator[tuple[str | None, str]]:
    """The pages, each with the name that the navigation gives it, if it gives one."""
    for entry in entries:
        if isinstance(entry, str):
            yield None, entry
            continue
        ((name, below),) = entry.items()
        if isinstance(below, str):
            yield name, below
        else:
            yield from navigation(below)


def config() -> Any:
    return importlib.import_module("mkdocs.config").load_config(str(ROOT / "mkdocs.yml"))


def test_the_navigation_calls_a_page_by_its_title() -> None:
    for name, page in navigation(config().nav):
        title = re.search(r"^# (.+)$", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert title or page == "changelog.md"
        assert page == "index.md" or name is None or (title and name == title[1]), page


def reference() -> list[str]:
    return [name for page in (DOCS / "api").rglob("*.md") for name in OBJECTS.findall(page.read_text("utf-8"))]


def test_the_reference_shows_objects_and_never_a_module_of_the_same_name() -> None:
    for name in reference():
        assert not isinstance(pkgutil.resolve_name(name), ModuleType), f"{name}: write the function's whole path"


@pytest.mark.parametrize("package", PUBLIC)
def test_whatever_is_public_has_one_place_in_the_reference(package: str) -> None:
    module = importlib.import_module(f"seqjepa{package}")
    shown = [pkgutil.resolve_name(name) for name in reference()]
    for name in module.__all__:
        thing = getattr(module, name)
        if not isinstance(thing, ModuleType):
            assert sum(thing is other for other in shown) == 1, name


def test_the_first_page_of_the_reference_lists_all_of_it(site: Path) -> None:
    listed = Page(site / "api" / "index.html").links
    for name in reference():
        assert any(link.endswith(f"#{name}") for link in listed), name


def test_words_that_people_look_for_are_in_the_search(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    for word, page in WORDS.items():
        found = {entry["location"].partition("#")[0] for entry in index["docs"] if word in _words(entry)}
        assert page in found, f"{word!r} is found on {sorted(found)}"


def _words(entry: dict[str, str]) -> str:
    return f"{entry['title']} {entry['text']}".lower()


def test_the_search_knows_sentences_and_no_source_code(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert not [entry["location"] for entry in index["docs"] if "Source code in" in entry["text"]]
    assert not [entry["location"] for entry in index["docs"] if "raise ValueError(" in entry["text"]]


def test_each_address_of_another_library_is_used(pages: dict[Path, Page]) -> None:
    used = {link for page in pages.values() for link in page.links}
    for line in (DOCS / "elsewhere.txt").read_text(encoding="utf-8").splitlines():
        assert line.split()[1] in used, line
