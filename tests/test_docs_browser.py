"""The site as a reader sees it, in a headless Chromium: every page at two widths, and the search."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Browser

pytest.importorskip("mkdocstrings", reason="pip install -e '.[docs]' builds the site")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium: a browser looks at the pages"),
]

ROOT = Path(__file__).parent.parent
WIDE, NARROW = 1400, 390  # px: a laptop, a phone
HIGHEST = 12_000  # px of a page of the reference at the greater width
HEIGHT = "document.documentElement.scrollHeight"
UNFOLD = "document.querySelectorAll('details').forEach(part => { part.open = true })"
CUT = """[...document.querySelectorAll('.md-content pre > code')]
    .filter(code => code.scrollWidth > code.clientWidth).map(code => code.innerText.slice(0, 200))"""
RESULTS = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))"
ASK = """(query => {
    const box = document.querySelector('.md-search__input');
    document.querySelector('#__search').click();
    box.focus();
    box.value = query;
    box.dispatchEvent(new Event('keyup', {bubbles: true}));
    box.dispatchEvent(new Event('input', {bubbles: true}));
})"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def addresses(site: Path) -> list[str]:
    found = [page.parent.relative_to(site).as_posix() for page in site.rglob("index.html")]
    return sorted("" if page == "." else f"{page}/" for page in found)


def faults(events: list[dict[str, Any]], home: str) -> list[str]:
    """What a page complained of, failed to load, or asked of somebody else."""
    found = []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            found.append(f"exception: {params['exceptionDetails']['text']}")
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            found.append(f"console: {params['args']}")
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            found.append(f"log: {params['entry']['text']} {params['entry'].get('url', '')}")
        if method == "Network.responseReceived" and params["response"]["status"] >= 400:
            found.append(f"missing: {params['response']['url']}")
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith((home, "data:", "blob:", "about:")):
                found.append(f"request elsewhere: {url}")
    return found


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_page_is_whole_and_no_wider_than_the_window(
    site: Path, address: str, browser: Browser, width: int
) -> None:
    for page in addresses(site):
        browser.open(address + page, width=width)
        assert browser.value("document.documentElement.scrollWidth") <= width, page
        assert browser.value("[...document.images].every(image => image.naturalWidth > 0)"), page
        assert not faults(browser.events, address), page
        if width == WIDE:
            browser.value(UNFOLD)
            assert not browser.value(CUT), page
            assert not page.startswith("api/") or browser.value(HEIGHT) <= HIGHEST, page


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("SeqJEPA", "api/model/"),
        ("resume", "guides/long-runs/"),
        ("wandb", "guides/long-runs/"),
        ("onnx", "guides/export/"),
        ("fine-tune", "guides/use-what-was-learnt/"),
        ("video", "guides/video/"),
        ("robot", "data/groups/"),
        ("downstream", "guides/use-what-was-learnt/"),
    ],
)
def test_the_search_box_answers(address: str, browser: Browser, query: str, page: str) -> None:
    browser.open(address, width=WIDE)
    browser.value(f"{ASK}({query!r})")
    found = browser.wait(f"(found => found.length && found)({RESULTS})")
    pages = [link.removeprefix(address).partition("?")[0].partition("#")[0] for link in found]
    assert page in pages[:5], found
    assert query != "SeqJEPA" or pages[0] == page, found
    assert not faults(browser.events, address)
