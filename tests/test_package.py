"""The house rules: what an import costs, which floor may look at which, what a name carries."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import seqjepa
import seqjepa.baselines
import seqjepa.data
import seqjepa.distributed
import seqjepa.evaluation
import seqjepa.groups
import seqjepa.planning
import seqjepa.training

PACKAGE = Path(seqjepa.__file__).parent

# A file imports only from lower floors.
FLOORS = {
    "types": 0, "functional": 0, "_checks": 0, "_files": 0, "_modes": 0, "_shards": 0, "distributed": 0,
    "groups": 1, "encoders": 1, "actions": 1, "aggregator": 1, "predictor": 1, "loss": 1, "mean_aggregate": 1,
    "causal": 2, "inverse": 2, "target": 2, "data": 2, "evaluation": 2,
    "_tokens": 2, "_parts": 3, "hub": 3, "baselines": 3,
    "model": 4,
    "presets": 5, "training": 5, "planning": 5, "objectives": 5,
    "interop": 6,
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """The floors' names that a file imports, at its top or anywhere inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            modules = [node.module or ""]
            if node.module == "seqjepa":
                modules = [f"seqjepa.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        names |= {m.split(".")[1] for m in modules if m.startswith("seqjepa.")}
    return names


def files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert name in FLOORS, f"{name} has no floor yet"
    for used in imports(path) - {name}:
        assert FLOORS[used] < FLOORS[name], f"{name} imports {used}"
    if path.parent == PACKAGE:
        assert name not in imports(path)


@pytest.mark.parametrize("name", ["groups", "data", "evaluation"])
def test_data_and_evaluation_know_no_model(name: str) -> None:
    known = {"types", "functional", "_checks", "_modes", "groups", name}
    known |= {"mean_aggregate"} if name == "evaluation" else set()
    known |= set() if name == "groups" else {"distributed"}
    known |= {"_files"} if name == "data" else set()  # a cache is whole or not there, as a model's folder is
    for path in (PACKAGE / name).rglob("*.py"):
        assert imports(path) <= known, path


def test_baselines_know_neither_seqjepa_nor_how_they_are_measured() -> None:
    known = {"types", "functional", "distributed", "_checks", "_modes", "groups", "target", "baselines"}
    known |= {name for name, floor in FLOORS.items() if floor == 1}
    for path in (PACKAGE / "baselines").rglob("*.py"):
        assert imports(path) <= known, path


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_importing_is_silent_and_loads_nothing_it_does_not_need() -> None:
    code = """
import logging, os, sys
import torch
before = set(sys.modules)
environment, loggers = dict(os.environ), set(logging.root.manager.loggerDict)
handlers, level = list(logging.root.handlers), logging.root.level
import seqjepa, seqjepa.presets, seqjepa.interop, seqjepa.groups, seqjepa.data, seqjepa.evaluation, seqjepa.training
import seqjepa.baselines
heavy = {"timm", "torchvision", "matplotlib", "sklearn", "huggingface_hub", "safetensors", "scipy", "tqdm", "PIL"}
print(sorted(heavy & (set(sys.modules) - before)), sorted(set(logging.root.manager.loggerDict) - loggers))
assert environment == dict(os.environ)
assert (handlers, level) == (logging.root.handlers, logging.root.level)
"""
    assert run(code) == "[] []\n"


def test_the_package_reads_no_environment_but_the_number_of_processes_and_sets_no_logging_up() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.Name):
                name = ast.unparse(node)
                if path == PACKAGE / "distributed.py" and name in ("os.environ", "os.environ.get"):
                    continue
                assert not name.startswith(("os.environ", "os.getenv", "logging.", "warnings.")), (
                    f"{path}:{node.lineno}"
                )


def test_nothing_unpickles_but_through_weights_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                assert "weights_only=True" in ast.unparse(node), f"{path}:{node.lineno}"


MODULES = [
    seqjepa,
    seqjepa.groups,
    seqjepa.data,
    seqjepa.evaluation,
    seqjepa.distributed,
    seqjepa.training,
    seqjepa.baselines,
    seqjepa.planning,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring_with_an_example(module: ModuleType) -> None:
    for name in module.__all__:
        public = getattr(module, name)
        assert inspect.ismodule(public) or inspect.getdoc(public), name
        if not inspect.ismodule(public) and not inspect.isabstract(public) and not holds_only_fields(public):
            assert ">>> " in (inspect.getdoc(public) or ""), name


def holds_only_fields(public: object) -> bool:
    """Whether it is a result without behaviour: its fields say all, and an example would show nothing."""
    fields = set(getattr(public, "_fields", ())) | set(getattr(public, "__dataclass_fields__", ()))
    own = {name for name in vars(public) if not name.startswith("_")} if isinstance(public, type) else set()
    return bool(fields) and own <= fields


def test_the_package_is_typed_and_has_a_version() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert seqjepa.__version__.count(".") == 2


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_admitted() -> None:
    declared = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    admitted = dict(
        re.findall(
            r'"([\w-]+)>=([\d.]+)"', declared[declared.index("\ndependencies") : declared.index("\nlightning = ")]
        )
    )
    admitted |= dict(re.findall(r'"([\w-]+)>=([\d.]+)"', next(re.finditer(r"^test = .*$", declared, re.M))[0]))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (PACKAGE.parent / "tests/oldest.txt").read_text("utf-8"), re.M))
    del tested["torchvision"]  # timm brings it; this is torch 2.6's
    assert tested.keys() == admitted.keys()
    for name, version in tested.items():
        assert re.fullmatch(rf"{re.escape(admitted[name])}(\.0)*", version), name
