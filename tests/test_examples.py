"""The examples run as their first lines say, in a small size."""

import subprocess
import sys
from pathlib import Path

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
