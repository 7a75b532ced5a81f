"""Training end to end over the bare encoder: what of its speed and memory is left, and how the cost grows.

End to end: images from a ViewLoader, views made on the device, the model's step, AdamW, EMA. Bare: the encoder's same
passes on views that are there already (forward and backward on B·T, forward without gradient on B, AdamW), as in
step.py. Both in turns in one process, so that they see the same machine; memory in a process for each.

    python benchmarks/train.py                            # eager and compiled, float32 and bfloat16, both formats
    python benchmarks/train.py --side 64 --batch 256      # another size; --cases eager,float32,NCHW for one case
    python benchmarks/train.py --grow docs/assets/growth.png   # over B, T, side and encoder, drawn and as a table

On a CPU, page faults cloud the ratio unless the allocator keeps its memory: docs/speed.md says how to tell it.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from step import bare_step, interleaved  # type: ignore[import-not-found]

from seqjepa import SeqJEPA, ViewSequence
from seqjepa.data import RotatedViews, ViewLoader
from seqjepa.training import weight_groups

ENCODERS = ("resnet18", "resnet50", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0")


@dataclass(frozen=True)
class Case:
    """What is measured."""

    encoder: str = "resnet18"
    side: int = 128
    batch: int = 64
    observed: int = 3
    mode: str = "eager"
    precision: str = "float32"
    layout: str = "NCHW"
    workers: int = 0

    def __str__(self) -> str:
        return f"{self.mode}, {self.precision}, {self.layout}"


def endless(loader: ViewLoader) -> Iterator[ViewSequence]:
    while True:
        yield from loader


def works(case: Case, device: torch.device) -> dict[str, Callable[[], None]]:
    """End to end; the step alone, on views that are there; the encoder alone."""
    torch.manual_seed(0)
    model = SeqJEPA.from_timm(case.encoder, action_dim=4, img_size=case.side, cifar_stem=False).to(device)
    layout: Any = torch.channels_last if case.layout == "channels-last" else torch.contiguous_format
    model = model.to(memory_format=layout)
    encoder, frozen = copy.deepcopy(model.encoder), copy.deepcopy(model.target.encoder)
    sampler = RotatedViews(num_views=case.observed + 1, degrees=30, shift=0.1, size=case.side, border="zero")
    images = list(torch.randint(0, 256, (4 * case.batch, 3, case.side, case.side), dtype=torch.uint8))
    loader = ViewLoader(images, sampler, batch_size=case.batch, device=device, num_workers=case.workers)
    batches = endless(loader)
    ready = next(batches)
    actions = torch.nn.functional.pad(ready.actions, (0, 4 - ready.actions.shape[-1]))
    goal = torch.randn(case.batch * case.observed, model.predictor.dim, device=device)
    seen = ready.views[:, :-1].flatten(0, 1).contiguous(memory_format=layout)
    last = ready.views[:, -1].contiguous(memory_format=layout)
    optimizer = torch.optim.AdamW(weight_groups(model, 1e-3), lr=1e-4, fused=True)
    if case.mode == "compiled":
        model.compile()
        encoder.compile()
        frozen.compile()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bfloat16")

    def step(views: torch.Tensor) -> None:
        with autocast:
            loss = model(views, actions).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target()

    return {
        "end to end": lambda: step(next(batches).views),
        "step": lambda: step(ready.views),
        "encoder": bare_step(encoder, frozen, seen, last, goal, autocast),
    }


def peak_memory(case: Case, work: str, device: torch.device) -> float:
    """Of one piece of work, in MiB beyond its weights, in a process of its own."""
    command = [sys.executable, __file__, "--device", str(device), "--memory", work, json.dumps(asdict(case))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.splitlines()[-1])


def print_peak_memory(case: Case, work: str, device: torch.device) -> None:
    """On a CPU the pages in use are read every millisecond, in a thread; Linux tells them."""
    act = works(case, device)[work]
    for _ in range(3):  # compiles, makes the optimiser's state
        act()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        print((torch.cuda.max_memory_allocated(device) - before) / 2**20)
        return
    ctypes.CDLL(None).malloc_trim(0)
    pages, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            pages.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    act()
    done.set()
    watcher.join()
    print((max(pages) - pages[0]) * resource.getpagesize() / 2**20)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, float]:
    """Medians: sources and views a second, and ratios of times within a round."""
    times = interleaved(works(case, device), rounds, device)

    def over(one: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times["encoder"], strict=True))

    seconds = {name: statistics.median(values) for name, values in times.items()}
    views = case.batch * (case.observed + 1)
    return {
        "sources/s": case.batch / seconds["end to end"],
        "views/s": views / seconds["end to end"],
        "encoder's views/s": views / seconds["encoder"],
        "step / encoder": over("step"),
        "end to end / encoder": over("end to end"),
        "throughput of the encoder's": 1 / over("end to end"),
    }


def growth(base: Case) -> dict[str, list[tuple[str, Case]]]:
    """One thing varied at a time."""
    return {
        "batch": [(str(n), replace(base, batch=n)) for n in (8, 16, 32, 64, 128)],
        "observed views": [(str(n), replace(base, observed=n)) for n in (1, 2, 3, 5, 8)],
        "side": [(str(n), replace(base, side=n)) for n in (32, 64, 96, 128)],
        "encoder": [(name, replace(base, encoder=name)) for name in ENCODERS],
    }


def draw(found: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Time over the encoder's, a panel for each thing that varies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axis, (what, points) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        for name in ("step / encoder", "end to end / encoder"):
            line = "none" if what == "encoder" else "-"  # nothing lies between two encoders
            values = [numbers[name] for numbers in points.values()]
            axis.plot(list(points), values, marker="o", linestyle=line, label=name)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xlabel(what)
        for tick in axis.get_xticklabels() if what == "encoder" else ():
            tick.set(rotation=25, horizontalalignment="right", rotation_mode="anchor")
    figure.axes[0].set_ylabel("time over the encoder's")
    figure.axes[0].set_ylim(0.9)  # of all, once all is drawn
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def table(rows: dict[str, dict[str, float]], corner: str) -> None:
    names = list(next(iter(rows.values())))
    print(f"| {corner} | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for row, numbers in rows.items():
        print(f"| {row} | " + " | ".join(f"{x:.0f}" if x >= 20 else f"{x:.3f}" for x in numbers.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18", help="a timm name")
    parser.add_argument("--side", type=int, default=128, help="of the views in pixels")
    parser.add_argument("--batch", type=int, default=64, help="sources a step")
    parser.add_argument("--observed", type=int, default=3, help="observed views of a source, T")
    parser.add_argument("--workers", type=int, default=0, help="of the loader")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--cases", default="", help="only those that hold all these words, such as eager,bfloat16")
    parser.add_argument("--grow", type=Path, metavar="PNG", help="how the cost grows, drawn into this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", nargs=2, metavar=("WORK", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.memory:
        print_peak_memory(Case(**json.loads(args.memory[1])), args.memory[0], device)
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {args.threads} CPU threads, torch {torch.__version__}")
    base = Case(args.encoder, args.side, args.batch, args.observed, workers=args.workers)
    print(f"{base.encoder}, {base.side} px, B = {base.batch}, T = {base.observed}\n")
    kinds = itertools.product(("eager", "compiled"), ("float32", "bfloat16"), ("NCHW", "channels-last"))
    cases = [replace(base, mode=m, precision=p, layout=f) for m, p, f in kinds]
    cases = [case for case in cases if all(word in str(case) for word in args.cases.split(",") if word)]
    if not cases:
        parser.error(f"--cases {args.cases} fits no case, such as 'compiled, bfloat16, channels-last'")
    if args.grow:
        found = {
            what: {label: measure(case, device, args.rounds) for label, case in points}
            for what, points in growth(cases[0]).items()
        }
        for what, points in found.items():
            table(points, what)
            print()
        draw(found, args.grow)
        return
    rows = {}
    for case in cases:
        rows[str(case)] = measure(case, device, args.rounds)
        peaks = {work: peak_memory(case, work, device) for work in ("end to end", "encoder")}
        rows[str(case)]["memory / encoder"] = peaks["end to end"] / peaks["encoder"]
    table(rows, "case")


if __name__ == "__main__":
    main()
