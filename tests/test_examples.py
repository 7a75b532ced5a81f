"""The examples run as their first lines say, in a small size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def test_the_quickstart_trains_measures_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "examples/quickstart.py", "--steps", "5", "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith(("accuracy %", "R² "))]
    table = {row[:22].strip(): float(row[22:]) for row in rows}
    assert set(table) >= {"accuracy %, z", "accuracy %, state 5", "R² rotation, z", "R² rotation, state 1"}
    assert 10 < table["accuracy %, z"] < 100
    assert all(value <= 1 for name, value in table.items() if name.startswith("R²"))
    assert "with actions: 100%" in result.stderr
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("digits", ["--steps", "5"]),
        pytest.param("labelled", ["--steps", "2", "--compare", "--fixations", "uniform"], marks=pytest.mark.nightly),
        pytest.param("unlabelled", ["--steps", "1", "--preset", "gpu"], marks=pytest.mark.nightly),
    ],
)
def test_the_saccades_train_measure_and_draw_on_digits_and_on_a_folder(
    data: str, options: list[str], tmp_path: Path
) -> None:
    images = {"labelled": tmp_path / "images", "unlabelled": tmp_path / "images" / "beds"}.get(data)
    if images is not None:
        noise = np.random.default_rng(0)
        for name in ("beds", "sofas"):
            (tmp_path / "images" / name).mkdir(parents=True)
            for i in range(10):
                pixels = noise.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
        options = [*options, "--images", str(images)]
    output = tmp_path / "figures"
    command = [sys.executable, "-W", "error", "examples/saccades.py", *options, "--output", str(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith(("accuracy %", "R² "))]
    table = {row[:22].strip(): [float(number) for number in row[22:].split()] for row in rows}
    assert ("accuracy %, state 5" in table) == (data != "unlabelled")
    assert len(table["R² position, z"]) == (2 if data == "labelled" else 1)
    assert all(value <= 1 for name, values in table.items() for value in values if name.startswith("R²"))
    assert "with actions: 100%" in result.stderr
    assert {path.name for path in output.iterdir()} == {"saccades.png", "views.png"}


@pytest.mark.nightly
def test_objects3d_trains_measures_and_draws(tmp_path: Path) -> None:
    options = ["--objects", "160", "--steps", "5", "--output", str(tmp_path)]
    command = [sys.executable, "-W", "error", "examples/objects3d.py", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith(("accuracy %", "R² ", "error °"))]
    table = {row[:22].strip(): float(row[22:]) for row in rows}
    assert set(table) >= {"accuracy %, z", "accuracy %, state 5", "R² rotation, z", "R² rotation, state 1"}
    assert 6 < table["accuracy %, z"] < 100
    assert all(value <= 1 for name, value in table.items() if name.startswith("R²"))
    assert 40 < table["error °, z"] < 120
    assert "with actions: 100%" in result.stderr
    assert (tmp_path / "objects3d.png").stat().st_size > 10_000


@pytest.mark.nightly
def test_the_claims_are_tried_and_runs_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    options = ["--preset", "smoke", "--only", "objects, with actions", "--output", str(tmp_path)]
    command = [sys.executable, "-W", "error", "examples/reproduce_claims.py", *options]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "| 3. R² from the state is far below that from z" in first.stdout
    assert "normalised across views" in first.stdout
    (done,) = (tmp_path / "smoke").glob("*.json")
    written = done.stat().st_mtime_ns
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.stdout == first.stdout
    assert done.stat().st_mtime_ns == written
    assert (tmp_path / "smoke" / "report.md").read_text(encoding="utf-8") == first.stdout
    done.write_text(done.read_text(encoding="utf-8").replace('"instances": 96', '"instances": 95'), encoding="utf-8")
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "is of other settings than --preset smoke has now; move it away" in refused.stderr


@pytest.mark.parametrize(
    ("example", "option"), [("objects3d", "--steps=0"), ("objects3d", "--objects=99"), ("saccades", "--steps=0")]
)
def test_wrong_sizes_are_refused_on_the_command_line(example: str, option: str) -> None:
    command = [sys.executable, f"examples/{example}.py", option]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "must be at least" in result.stderr
