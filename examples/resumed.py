"""What the scripts of many runs share: each run is kept when it is done, and not done again.

Start a script twice, or on every core that there is, with one output folder: each run is done by one of them.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

Run = tuple[int, str]  # seed, condition


class Asked(NamedTuple):
    """What the command line asks for: how much work, where, and which runs, seed by seed."""

    preset: Any
    folder: Path
    runs: list[Run]


def asked(doc: str | None, presets: Mapping[str, Any], conditions: Sequence[str], *, output: str) -> Asked:
    """Read the command line. The first preset is the default; results go to `output`/PRESET unless told otherwise."""
    default = next(iter(presets))
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets, default=default, help=f"how much work; {default} by default")
    parser.add_argument("--only", nargs="+", default=[""], help="runs whose names begin so, such as wall BYOL")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; further ones follow it; 0 by default")
    parser.add_argument("--seeds", type=int, help="how many, instead of the preset's")
    parser.add_argument("--output", type=Path, help=f"folder for the results; {output}/PRESET by default")
    args = parser.parse_args()
    preset = presets[args.preset]
    count = preset.seeds if args.seeds is None else args.seeds
    if count < 1:
        parser.error(f"--seeds must be at least 1; got {count}")
    for start in args.only:
        if not any(condition.startswith(start) for condition in conditions):
            parser.error(f"--only takes beginnings of names: {', '.join(conditions)}; got {start}")
    folder = args.output or Path(output) / args.preset
    folder.mkdir(parents=True, exist_ok=True)
    done(folder, settings(preset))  # before any work: are they of these settings?
    wanted = [condition for condition in conditions if condition.startswith(tuple(args.only))]
    return Asked(preset, folder, [(seed, c) for seed in range(args.seed, args.seed + count) for c in wanted])


def named(condition: str, seed: int) -> str:
    """A run's name as that of a file."""
    return f"{condition.replace(', ', '-').replace(' ', '_')}-{seed}"


def settings(preset: Any) -> dict[str, Any]:
    """What makes two runs comparable: all of the preset but how many seeds there are."""
    return json.loads(json.dumps({name: value for name, value in asdict(preset).items() if name != "seeds"}))


def write(path: Path, text: str) -> None:
    """The whole file, or none."""
    part = path.with_suffix(f".{os.getpid()}")  # of this process: another may write the same
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
    return dict(sorted(found.items()))


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process may do what the file stands for, until the end of the block; the others may not."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # who waits for it holds it, and looks at what is done


def each(asked: Asked, cost: Callable[[str], float]) -> Iterator[Run]:
    """Each run that nobody has done or is at; before it how many are left, and how long they take at this pace.

    `cost` of a condition is in any unit.
    """
    spent, paid = 0.0, 0.0
    for seed, condition in asked.runs:
        path = asked.folder / f"{named(condition, seed)}.json"
        with claim(path.with_suffix(".lock")) as mine:
            if not mine or path.exists():
                continue
            ahead = [c for s, c in asked.runs if not (asked.folder / f"{named(c, s)}.json").exists()]
            guess = f", about {spent / paid * sum(map(cost, ahead)) / 60:.0f} minutes" if paid else ""
            print(f"{len(ahead)} of {len(asked.runs)} runs left{guess}; now {condition}, seed {seed}", flush=True)
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
