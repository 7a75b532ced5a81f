"""seq-JEPA beside the methods of the paper's table, in one loop and one table.

    python examples/compare_methods.py                     # three seeds of 22 rows; some four hours on two CPU cores
    python examples/compare_methods.py --preset short      # a quarter of the steps: an hour for the first seed
    python examples/compare_methods.py --only BYOL SimCLR  # a part of the rows
    python examples/compare_methods.py --preset gpu        # ResNet-18 at 128 px and the table's own heads: days

All methods get the same encoder, objects, optimiser and number of steps, and each its own rate, chosen from the same
four on other objects. Rows named "two pairs" see four views a step as seq-JEPA does, and cost as much. Each run writes
its numbers when it is done, and is not done again: stop it when you like, and start it again.

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from claims_runs import Worlds
from compare_report import draw, report
from compare_runs import CONDITIONS, PRESETS, TWO_PAIRS, UNTRAINED, Preset, best_rate, cost, run
from resumed import as_json, done, left, named, progress, settings, write


def rate_of(condition: str, preset: Preset, worlds: Worlds, folder: Path) -> float | None:
    """The method's rate, searched when first asked for."""
    condition = condition.removesuffix(TWO_PAIRS)
    if not preset.search or condition == UNTRAINED:
        return None
    path = folder / "rates.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if condition not in known:
        rate, scores = best_rate(condition, worlds, preset.search)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # of a start beside this one
        known[condition] = {"rate": rate, "top-1 and R²": scores}
        write(path, as_json(known))
    return known[condition]["rate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="laptop", help="how much work")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin so, such as BYOL VICReg")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; further ones follow it")
    parser.add_argument("--seeds", type=int, help="how many, instead of the preset's")
    parser.add_argument("--output", type=Path, help="folder for the results; runs/compare/PRESET by default")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    count = preset.seeds if args.seeds is None else args.seeds
    if count < 1:
        parser.error(f"--seeds must be at least 1; got {count}")
    rows = [condition for condition in CONDITIONS if condition.startswith(tuple(args.only))]
    for start in args.only:
        if not any(condition.startswith(start) for condition in CONDITIONS):
            parser.error(f"--only are beginnings of names: {', '.join(CONDITIONS)}; got {start}")
    folder = args.output or Path("runs/compare") / args.preset
    folder.mkdir(parents=True, exist_ok=True)
    done(folder, settings(preset))  # before any work: are they of these settings?
    worlds, others = Worlds(preset.world), Worlds(preset.world, seed=1)
    wanted = [(seed, condition) for seed in range(args.seed, args.seed + count) for condition in rows]
    for seed, condition in progress(left(wanted, folder), cost):
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
