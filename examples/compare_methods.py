"""seq-JEPA beside the methods of the paper's table, in one loop and one table.

    python examples/compare_methods.py                     # three seeds of 22 rows; some four hours on two CPU cores
    python examples/compare_methods.py --preset short      # a quarter of the steps: an hour for the first seed
    python examples/compare_methods.py --only BYOL SimCLR  # a part of the rows
    python examples/compare_methods.py --preset gpu        # ResNet-18 at 128 px and the table's own heads: days

All methods get the same encoder, objects, optimiser and number of steps, and each its own rate, chosen from the same
four on other objects. Rows named "two pairs" see four views a step as seq-JEPA does, and cost as much. Each run writes
its numbers when it is done, and is not done again: stop it when you like, and start it again, also twice at the same
time, once for each core (`OMP_NUM_THREADS=1`).

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from claims_runs import Worlds
from compare_report import draw, report
from compare_runs import CONDITIONS, PRESETS, TWO_PAIRS, UNTRAINED, Preset, best_rate, cost, run
from resumed import as_json, asked, claim, done, each, named, settings, write


def rate_of(condition: str, preset: Preset, worlds: Worlds, folder: Path) -> float | None:
    """The method's rate, searched when first asked for."""
    condition = condition.removesuffix(TWO_PAIRS)
    if not preset.search or condition == UNTRAINED:
        return None
    path = folder / "rates.json"
    with claim(folder / f"rate-{condition}.lock", wait=True):
        known = rates(path)
        if condition not in known:
            rate, scores = best_rate(condition, worlds, preset.search)
            with claim(folder / "rates.lock", wait=True):
                known = rates(path) | {condition: {"rate": rate, "top-1 and R²": scores}}
                write(path, as_json(known))
    return known[condition]["rate"]


def rates(path: Path) -> dict[str, Any]:
    """Those that were searched, by method."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main() -> None:
    what = asked(__doc__, PRESETS, CONDITIONS, output="runs/compare")
    preset, folder = what.preset, what.folder
    worlds, others = Worlds(preset.world), Worlds(preset.world, seed=1)
    for seed, condition in each(what, cost):
        rate = rate_of(condition, preset, others, folder)
        result = run(condition, seed, worlds, rate) | {"settings": settings(preset)}
        write(folder / f"{named(condition, seed)}.json", as_json(result))
    runs = {seed: {c: result["numbers"] for c, result in of.items()} for seed, of in
            done(folder, settings(preset)).items()}  # fmt: skip
    found, text = report(runs)
    write(folder / "summary.json", as_json(found | {"settings": settings(preset)}))
    write(folder / "report.md", text)
    draw(runs).savefig(folder / "plane.png", dpi=150)
    print(text)
    print(f"\nFigure saved as {folder / 'plane.png'}")


if __name__ == "__main__":
    main()
