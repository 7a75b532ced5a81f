"""What the pages say runs: every python block of the README and the docs, page by page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MANY = ROOT / "docs" / "guides" / "many-gpus.md"  # of which torchrun makes sense


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p) and p != MANY], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_python_block_of_a_page_runs_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in re.findall(r"^(?:import|from) (lightning|accelerate|transformers)\b", "".join(blocks(page)), re.M):
        pytest.importorskip(package, reason=f"the page is about {package}, which is not installed")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for index, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name} block {index + 1}", "exec"), namespace)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="fully_shard runs on CPUs since torch 2.7")
def test_the_page_on_many_gpus_runs_on_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(MANY)), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend=c10d"]
    command = [sys.executable, *torchrun, "--rdzv-endpoint=127.0.0.1:0", "--", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_the_readme_has_a_loop_that_runs() -> None:
    assert any("update_target()" in block for block in blocks(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), target


def test_the_owner_s_address_is_filled_in_in_one_place() -> None:
    held = [path for path in (ROOT / name for name in ("CITATION.cff", "mkdocs.yml")) if "OWNER" in path.read_text()]
    held += [page for page in PAGES if "OWNER" in page.read_text(encoding="utf-8")]
    assert not held
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("[project.urls]"))
    block = lines[begin : lines.index("", begin)]
    assert all(line in block for line in lines if "OWNER" in line)
    assert {line.split(" = ")[0] for line in block[1:]} >= {"Repository", "Issues", "Documentation"}
