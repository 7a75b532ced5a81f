"""Do the paper's claims hold here? Train small models on rendered objects and on walls of pictures, measure, say so.

    python examples/reproduce_claims.py                     # three seeds; an hour and a half on two idle CPU cores
    python examples/reproduce_claims.py --preset nightly    # one seed, short runs: ten minutes
    python examples/reproduce_claims.py --only wall         # a part of the runs
    python examples/reproduce_claims.py --preset gpu        # the paper's encoder, views and whole box: days of a GPU

Each run writes its numbers when it is done, and is not done again: stop it when you like, and start it again, also
twice at the same time, once for each core (`OMP_NUM_THREADS=1`). The rules by which a claim holds stand in
`claims_rules.py`, and are printed with what came of them; `summary.json` in the output folder has the verdicts, the
figures and the levels that know nothing.

Needs `pip install 'seqjepa[examples]'`. Nothing is downloaded.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from claims_faults import leak_of_normalised_actions, probed_in_training_mode
from claims_measures import of_objects, of_walls, on_the_way
from claims_rules import report, summary
from claims_runs import OBJECTS, PRESETS, WALLS, Preset, Worlds, new_model, trained, untrained
from resumed import as_json, asked, done, each, named, settings, write

CONDITIONS = (*WALLS, OBJECTS[0], OBJECTS[2], OBJECTS[1])  # what is cheap and decides most, first


def run(condition: str, seed: int, preset: Preset, worlds: Worlds, folder: Path) -> dict[str, Any]:
    """Train one model, or take the weights that an earlier start trained, and measure it."""
    weights = folder / f"{named(condition, seed)}.pt"
    begun = time.perf_counter()
    saved = torch.load(weights, weights_only=True) if weights.exists() else None
    if condition == OBJECTS[2]:
        model, curve, training = untrained(condition, seed, worlds), {}, 0.0
    elif saved is not None and saved["settings"] == settings(preset):
        model = new_model(condition, preset.steps, preset).eval()
        model.load_state_dict(saved["weights"])
        curve, training = saved["curve"], saved["seconds"]
    else:
        curve = {}
        model = trained(condition, seed, worlds, lambda s, m: curve.update({str(s): on_the_way(m, worlds, seed)}))
        training = time.perf_counter() - begun
        saved = {"weights": model.state_dict(), "curve": curve, "seconds": training, "settings": settings(preset)}
        torch.save(saved, weights)
    begun = time.perf_counter()
    numbers = (of_walls if condition in WALLS else of_objects)(condition, model, worlds, seed)
    if condition == OBJECTS[0]:
        numbers |= probed_in_training_mode(model, worlds, seed)
    seconds = {"training": training, "measuring": time.perf_counter() - begun}
    return {
        "condition": condition, "seed": seed, "settings": settings(preset), "numbers": numbers, "curve": curve,
        "seconds": seconds,
    }  # fmt: skip


def cost(condition: str, preset: Preset) -> float:
    """Steps of a run."""
    return preset.wall_steps if condition in WALLS else preset.steps * (condition != OBJECTS[2])


def main() -> None:
    what = asked(__doc__, PRESETS, CONDITIONS, output="runs/claims")
    preset, folder = what.preset, what.folder
    worlds = Worlds(preset)
    for seed, condition in each(what, lambda c: cost(c, preset)):
        result = run(condition, seed, preset, worlds, folder)
        write(folder / f"{named(condition, seed)}.json", as_json(result))
        write_summary(folder, preset)
    print(write_summary(folder, preset))


def write_summary(folder: Path, preset: Preset) -> str:
    """`summary.json` and `report.md`, of all runs that are done."""
    results = done(folder, settings(preset))
    runs = {seed: {c: result["numbers"] for c, result in of.items()} for seed, of in results.items()}
    faults = folder / "faults.json"
    if not faults.exists():
        write(faults, as_json(leak_of_normalised_actions(400 if preset.steps < 100 else 20_000)))
    leak = json.loads(faults.read_text(encoding="utf-8"))
    found = summary(runs, preset.paths)
    seconds = sum(sum(result["seconds"].values()) for of in results.values() for result in of.values())
    text = "\n".join([
        f"{sum(map(len, runs.values()))} runs of seeds {', '.join(map(str, runs))}, {seconds / 60:.0f} minutes.\n",
        report(found, runs),
        "\nR² of the predicted view's crop from the actions between the views before it: "
        + ", ".join(f"{name} {value:.2f}" for name, value in leak.items()),
    ])  # fmt: skip
    write(folder / "summary.json", as_json(found | {"faults": leak, "settings": settings(preset)}))
    write(folder / "report.md", text)
    return text


if __name__ == "__main__":
    main()
