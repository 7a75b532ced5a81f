"""What surrounds a loop: the run's folder, what is written down as it goes, the signals that end it, its processes."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from seqjepa.distributed import broadcast_object, rank

T = TypeVar("T")


def start_processes(device: str) -> torch.device:
    """Join the other ranks, where torchrun started this one, and take this rank's device. Before any loader is made."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    with clear_errors():
        found = torch.empty(0, device=device).device  # what is unknown or not here says so
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # Imported later, as DistributedDataParallel does, its default arguments would hold the group beyond its
        # destruction, and a thread of gloo that lets go of a tensor while Python ends aborts the process.
        from torch.distributed.nn import functional  # noqa: F401

        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    return found


@contextmanager
def clear_errors() -> Iterator[None]:
    """What is wrong with the settings ends the program with a line instead of a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError, AssertionError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


def check_folder(settings: Any) -> None:
    """End the program on all ranks unless the folder is free, or holds a run that these settings go on with."""
    problem = None
    if rank() == 0:
        try:
            _check_folder(settings)
        except (ValueError, OSError) as error:
            problem = str(error)
    with clear_errors():
        problem = broadcast_object(problem)
        if problem:
            raise ValueError(problem)


def _check_folder(settings: Any) -> None:
    folder = Path(settings.run)
    file, begun = folder / "config.json", any((folder / "checkpoints").glob("step-*.pt"))
    if settings.resume == "always" and not begun:
        raise ValueError(f"--resume of nothing: {folder} holds no checkpoint. Leave --resume out to begin a run there")
    if settings.resume == "never" and (begun or file.exists()):
        raise ValueError(f"{folder} holds a run already. Go on with it by --resume auto, or choose another by --run")
    if not file.exists():
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read as JSON ({error}). Mend it, or choose another folder by --run"
        ) from None
    changed = [f for f in fields(settings) if before.get(f.name) != getattr(settings, f.name) and f.name != "resume"]
    told = [(f, f"{f.name} was {before.get(f.name)!r} and is {getattr(settings, f.name)!r}") for f in changed]
    if any(f.metadata["fixed"] for f in changed):
        fixed = ", ".join(line for f, line in told if f.metadata["fixed"])
        raise ValueError(f"{folder} holds a run of another configuration: {fixed}. Choose another folder by --run")
    for _, line in told if begun else []:
        print(f"From now on: {line}.")


def write_settings(settings: Any) -> None:
    """Into config.json of the run's folder, whole or not at all."""
    _write_whole(Path(settings.run, "config.json"), json.dumps(asdict(settings), indent=2) + "\n")


def command_that_goes_on(settings: Any, program: str, ranks: int) -> str:
    """Of a run that was interrupted."""
    launcher = f"torchrun --nproc-per-node {ranks} --" if ranks > 1 else "python"
    return f"{launcher} {program} --config {Path(settings.run, 'config.json')} --resume auto"


def passes(loader: Iterable[T]) -> Iterator[T]:
    """Batches without end; the loader goes on with the next epoch by itself."""
    while True:
        yield from loader


class NoProfiler(nullcontext[Any]):
    """In its place where nothing is to be traced."""

    def __enter__(self) -> NoProfiler:
        return self

    def step(self) -> None: ...


def profiler(folder: Path | None) -> Any:
    """Of torch, over steps 4 to 7, into a file for chrome://tracing or Perfetto; None profiles nothing."""
    if folder is None:
        return NoProfiler()
    return torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=2, warmup=2, active=4, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(folder / f"trace-{rank()}.json")),
    )


class Stop:
    """SIGTERM and Ctrl-C, remembered until the step is done; a second one ends the process at once.

    In a `with` block they are remembered until it ends, and take effect then. One that is ignored, as Ctrl-C by what a
    shell started in the background, still is.
    """

    signal = 0

    def __init__(self) -> None:
        heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
        self.before = {number: signal.signal(number, self) for number in heeded}

    def __call__(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.signal:
            signal.raise_signal(self.signal)


@contextmanager
def polite_end(folder: Path) -> Iterator[None]:
    """Ctrl-C ends the program with what to do next instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        kept = any(folder.rglob("step-*.pt"))
        words = f"goes on from the last checkpoint in {folder}" if kept else "begins anew: no step is kept yet"
        print(f"\nStopped. The same command {words}:")
        print(f"    python {shlex.join(sys.argv)}")
        raise SystemExit(130) from None


class Draws:
    """What a run draws from, for its checkpoint: these generators, and torch's own, which dropout draws from."""

    def __init__(self, *generators: torch.Generator) -> None:
        self.generators = generators

    def state_dict(self) -> dict[str, Any]:
        """The states of all of them."""
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return {"own": [one.get_state() for one in self.generators], "cpu": torch.get_rng_state(), "gpu": gpu}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for one, own in zip(self.generators, state["own"], strict=True):
            one.set_state(own)
        torch.set_rng_state(state["cpu"])
        if state["gpu"] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["gpu"])


class Tally(dict[str, int]):
    """Counts that a checkpoint keeps."""

    state_dict = dict.copy
    load_state_dict = dict.update


class Journal:
    """Metrics as a line of JSON a logged step, to TensorBoard where it is installed, and in a progress bar.

    Another logger is one more hook, here that of Weights & Biases:

        run = wandb.init(project="seqjepa", id=folder.name, resume="allow")
        journal.hooks.append(lambda step, values: run.log(values, step=step))
    """

    def __init__(self, folder: Path, step: int, steps: int, *, writes: bool) -> None:
        self.writes = writes  # one process does
        self.hooks: list[Callable[[int, dict[str, Any]], None]] = []
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not writes)
        if writes:
            self.file = _reopened(folder / "metrics.jsonl", step)
            self.hooks += [self._to_json, *_tensorboard(folder, step)]

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Numbers and words by name; parts of dataclasses become `name.part`."""
        plain = dict(_flat(values)) if self.writes else {}
        for hook in self.hooks:
            hook(step, plain)
        if self.writes:
            self.bar.set_postfix(loss=f"{values['loss']:.3f}", rate=f"{values['rate']:.2g}")

    def _to_json(self, step: int, values: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if is_dataclass(value):
            yield from _flat({f.name: getattr(value, f.name) for f in fields(value)}, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _reopened(path: Path, step: int) -> Any:
    """The file, without what was written after the checkpoint that the run goes on from."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue  # the run was killed in the middle of it
    _write_whole(path, "".join(kept))
    return path.open("a", encoding="utf-8")


def _write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _tensorboard(folder: Path, step: int) -> list[Callable[[int, dict[str, Any]], None]]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def log(step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, step)
        writer.flush()

    return [log]


def not_finite(loss: float, gradient: float, step: int, seed: int, latest: Path | None) -> str:
    """What a run that ends at such a step says."""
    where = "nothing was saved yet" if latest is None else f"go on from {latest}"
    return f"error: loss {loss}, gradient {gradient}; {step=}, {seed=}; {where}"
