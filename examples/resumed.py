"""What the scripts of many runs share: each run is kept when it is done, and not done again."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

Run = tuple[int, str]  # seed, condition


def named(condition: str, seed: int) -> str:
    """A run's name as that of a file."""
    return f"{condition.replace(', ', '-').replace(' ', '_')}-{seed}"


def settings(preset: Any) -> dict[str, Any]:
    """What makes two runs comparable: all of the preset but how many seeds there are."""
    return json.loads(json.dumps({name: value for name, value in asdict(preset).items() if name != "seeds"}))


def write(path: Path, text: str) -> None:
    """The whole file, or none."""
    part = path.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def as_json(value: Any) -> str:
    """Numbers that do not exist are null."""

    def strict(v: Any) -> Any:
        if isinstance(v, dict):
            return {str(key): strict(item) for key, item in v.items()}
        if isinstance(v, list | tuple):
            return [strict(item) for item in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False)


def done(folder: Path, settings: dict[str, Any]) -> dict[int, dict[str, dict[str, Any]]]:
    """Seed → condition → what a finished run wrote; an error if one is of other settings."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["settings"] != settings:
            raise SystemExit(f"{path} is of other settings than the preset has now; move it away.")
        found.setdefault(result["seed"], {})[result["condition"]] = result
    return found


def left(wanted: list[Run], folder: Path) -> list[Run]:
    """The runs that are not done, in the order given."""
    return [(seed, condition) for seed, condition in wanted if not (folder / f"{named(condition, seed)}.json").exists()]


def progress(todo: list[Run], cost: Callable[[str], float]) -> Iterator[Run]:
    """Each run in turn; before it how many are left, and about how long they take. `cost` is in any unit."""
    spent, paid = 0.0, 0.0
    for i, (seed, condition) in enumerate(todo):
        ahead = sum(cost(c) for _, c in todo[i:])
        guess = f", about {spent / paid * ahead / 60:.0f} minutes" if paid else ""
        print(f"{len(todo) - i} of {len(todo)} runs left{guess}; now {condition}, seed {seed}", flush=True)
        begun = time.perf_counter()
        yield seed, condition
        spent, paid = spent + time.perf_counter() - begun, paid + cost(condition)


def plain(value: float, spread: float | None = None) -> str:
    """A number as tables have it, with its deviation."""
    digits = 1 if abs(value) >= 2 else 2
    missing = spread is None or math.isnan(spread)
    return f"{value:.{digits}f}" + ("" if missing else f" ± {spread:.{digits}f}")


def mean_and_spread(values: list[float]) -> str:
    """As tables have it; nothing of no values."""
    if not values:
        return ""
    return plain(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
