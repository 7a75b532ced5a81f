"""What the pages say runs, and prints what they show: every python block of the README and the docs, page by page."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.docs_data import write_datasets, write_photographs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MANY = ROOT / "docs" / "guides" / "many-gpus.md"  # of which torchrun makes sense
WIDTH = 80  # columns of code that a page shows at 1400 px
FILES = {"data/loading.md": write_photographs, "data/datasets.md": write_datasets}
OPTIONAL = r"^(?:import|from) (lightning|accelerate|transformers|onnxruntime)\b"


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    shows_output: bool
    text: str


def blocks(page: Path) -> list[Block]:
    fenced = re.findall(
        r"^```(\w*)([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return [Block(language, 'title="Output"' in settings, text) for language, settings, text in fenced]


def python(page: Path) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shape_of(output: str) -> list[list[str]]:
    """The words of every line, numbers left open: they depend on the machine in their last digits."""
    plain = re.sub("◄.*", "", output)  # that an untrained model wins is said in a different place for another model
    lines = [re.sub(r"[-+−]?\d+(\.\d+)?(e-?\d+)?", "#", line).split() for line in plain.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("page", [p for p in PAGES if python(p) and p != MANY], ids=named)
def test_every_python_block_of_a_page_runs_in_order_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    FILES.get(named(page).removeprefix("docs/"), lambda *_: None)(tmp_path, monkeypatch)
    namespace: dict[str, object] = {"__name__": "page"}
    printed = ""
    for number, block in enumerate(blocks(page)):
        if block.shows_output:
            assert shape_of(printed) == shape_of(block.text), f"block {number + 1} prints:\n{printed}"
        if block.language != "python":
            continue
        for package in re.findall(OPTIONAL, block.text, flags=re.MULTILINE):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed: the page ran as far as block {number}")
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            exec(compile(block.text, f"{page.name} block {number + 1}", "exec"), namespace)
        printed = stdout.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_stands_in_python_blocks_where_it_is_run(page: Path) -> None:
    for block in blocks(page):
        assert block.language == "python" or not re.search(r"^(import|from) \w", block.text, flags=re.MULTILINE)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="fully_shard runs on CPUs since torch 2.7")
def test_the_page_on_many_gpus_runs_on_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join(python(MANY)), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend=c10d"]
    command = [sys.executable, *torchrun, "--rdzv-endpoint=127.0.0.1:0", "--", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_the_readme_has_a_loop_that_runs() -> None:
    assert any("update_target()" in block for block in python(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), target


WIDE = {"README.md"}  # read where lines are longer


@pytest.mark.parametrize("page", [p for p in PAGES if named(p) not in WIDE], ids=named)
def test_no_line_of_code_is_cut_on_a_page(page: Path) -> None:
    for block in blocks(page):
        for line in block.text.splitlines():
            assert block.shows_output or len(line) <= WIDTH, f"{named(page)}: {len(line)} columns: {line}"


def test_the_page_on_evaluation_reads_every_kind_of_line_of_its_card_as_it_is_printed() -> None:
    page = ROOT / "docs" / "evaluation" / "index.md"
    card = next(block.text for block in blocks(page) if block.shows_output)
    printed = {" ".join(line.split()) for line in card.splitlines()}
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    read = {" ".join(" ".join(row).split()) for row in rows} - {"line value chance; untrained model"}
    assert read <= printed, read - printed
    kinds = {kind(line) for line in read}
    unread = [line for line in printed if re.search(r"untrained -?\d", line) and kind(line) not in kinds]
    assert not unread, unread


def kind(line: str) -> str:
    """The measure of a line, whatever it was taken of."""
    return re.split(r", | -?\d", line)[0]


def test_the_owner_s_address_is_filled_in_in_one_place() -> None:
    held = [path for path in (ROOT / name for name in ("CITATION.cff", "mkdocs.yml")) if "OWNER" in path.read_text()]
    held += [page for page in PAGES if "OWNER" in page.read_text(encoding="utf-8")]
    assert not held
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("[project.urls]"))
    block = lines[begin : lines.index("", begin)]
    assert all(line in block for line in lines if "OWNER" in line)
    assert {line.split(" = ")[0] for line in block[1:]} >= {"Repository", "Issues", "Documentation"}
